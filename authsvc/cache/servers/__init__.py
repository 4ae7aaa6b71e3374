"""What stands behind a client: one server, the primary that a Sentinel names, or a cluster."""
