"""Access tokens: signing keys, content, and whether a token is valid now."""
