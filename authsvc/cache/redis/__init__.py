"""How Redis is reached: one gateway, its connections, and the servers: one, Sentinel or Cluster."""
