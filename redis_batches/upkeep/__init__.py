"""What the clock does, without Celery."""
