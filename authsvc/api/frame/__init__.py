"""What all views share: guards, bodies, errors, headers, the OpenAPI description."""
