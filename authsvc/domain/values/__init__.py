"""Values that the whole domain uses: times, identifiers, addresses, JSON."""
