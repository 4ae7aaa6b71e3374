"""PostgreSQL: connections, and the meaning of its errors."""
