"""Where the domain's protocols meet SQL and Redis; driver words stay inside."""
