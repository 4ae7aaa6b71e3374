"""How records get into the cache and out of it: looks, leases, loads, and what they may show meanwhile."""
