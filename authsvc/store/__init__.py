"""Implementations of the domain's protocols over SQL and Redis; driver types and errors stay inside."""
