"""The rows of accounts: users and their credentials, factors, tickets, mails; users in bulk."""
