"""How records are looked up, loaded under a lease, stored and dropped."""
