"""Words the whole domain speaks in: times, identifiers, addresses, JSON."""
