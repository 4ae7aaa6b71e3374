"""The only room that knows HTTP: views, guards, schemas and the error table."""
