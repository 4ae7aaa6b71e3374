"""Accounts in SQL: users, credentials, factors, tickets, mails; import and export."""
