"""What every view stands in: guards, bodies, errors, headers, the description."""
