"""Accounts that people can recover: tickets, mails, and what is done with them."""
