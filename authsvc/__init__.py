"""Self-hosted auth and session service for microservices."""

__version__ = "0.2.0.dev0"
