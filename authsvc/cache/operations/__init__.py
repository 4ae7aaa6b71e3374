"""Redis' types with JSON in them: values, hashes, lists, sets and counters, each with a life of its own."""
