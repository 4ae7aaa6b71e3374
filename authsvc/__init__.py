"""Self-hosted auth and session service for microservices."""
