"""Access to Redis: the client, its connections, and the servers (single, Sentinel or Cluster)."""
