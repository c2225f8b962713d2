"""This project and celery-batches, measured side by side on one server."""
