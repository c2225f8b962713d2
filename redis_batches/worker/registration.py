"""What a worker does at its start: it checks the server, and registers its batch tasks."""

from __future__ import annotations

from typing import Any

from celery.utils.log import get_logger

from redis_batches.app.state import runtime_of
from redis_batches.core.errors import StoreError, UnsupportedServer
from redis_batches.worker.served import batch_tasks

logger = get_logger(__name__)


def register(app: Any) -> bool:
    """Checks the server, and writes down what this worker serves for any sweeper.

    Returns:
        Whether Redis could be reached.

    Raises:
        UnsupportedServer: Requests would be lost there, so the worker must not start.
    """
    runtime = runtime_of(app)
    try:
        runtime.check_server()
        runtime.registry.answered()
        runtime.registry.write({task.name: task.trigger for task in batch_tasks(app)})
    except StoreError as exc:
        if runtime.quiet.may_say("register"):
            logger.warning("cannot register the batch tasks yet: %s", exc)
        return False
    return True


def register_late(app: Any) -> bool:
    """Does it for a server that could not be reached at the worker's start.

    Returns:
        Whether there is nothing left to do.
    """
    try:
        return register(app)
    except UnsupportedServer as exc:
        logger.critical("this worker must not go on: %s", exc)
        return True
