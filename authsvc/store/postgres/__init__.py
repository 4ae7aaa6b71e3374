"""What PostgreSQL needs beside statements: how a connection is made, and what its errors mean."""
