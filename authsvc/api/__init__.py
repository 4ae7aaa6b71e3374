"""HTTP: views, guards, schemas and the error table."""
