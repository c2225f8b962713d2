"""Values and rules: no I/O, no Celery, no Redis."""
