"""Passwords: what makes one fit, how one is hashed and verified, and the lane that does the work."""
