"""From `delay()` to a stored request."""
