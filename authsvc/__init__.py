"""Self-hosted auth and session service for microservices."""

__version__ = "0.1.0"
