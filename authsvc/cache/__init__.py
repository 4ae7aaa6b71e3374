"""A cache over Redis, usable by any service: standard library and redis-py alone."""
