"""The copies in Redis, and their comparison with SQL."""
