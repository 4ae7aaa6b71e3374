"""Lookup, load under a lease, storage and invalidation of records."""
