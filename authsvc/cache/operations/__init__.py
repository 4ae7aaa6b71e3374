"""Redis' types with JSON values: values, hashes, lists, sets and counters, each key with an expiry."""
