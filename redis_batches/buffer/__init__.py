"""A task's requests in Redis, one verb per script."""
