"""Access tokens: what signs them, what is in them, whether one is good now."""
