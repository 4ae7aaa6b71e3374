"""Passwords: the policy, hashing and verification, and the hashing lane."""
