"""The fast copies in Redis, and what keeps them honest."""
