"""Schemas of requests and answers, by topic."""
