"""Batches of Celery task calls, accumulated in Redis."""

from importlib.metadata import PackageNotFoundError, version

from redis_batches.core.errors import (
    BacklogFull,
    BatchesError,
    DuplicateTaskId,
    InvalidTaskId,
    LeaseLost,
    NotReplicated,
    OptionError,
    OutOfMemory,
    PayloadTooLarge,
    StoreError,
    UnknownOption,
    UnusableCall,
)
from redis_batches.operate.inspector import DeadLetter
from redis_batches.runs.request import SimpleRequest
from redis_batches.task.batches import Batches
from redis_batches.task.decorator import batched_task

__all__ = [
    "BacklogFull",
    "Batches",
    "BatchesError",
    "DeadLetter",
    "DuplicateTaskId",
    "InvalidTaskId",
    "LeaseLost",
    "NotReplicated",
    "OptionError",
    "OutOfMemory",
    "PayloadTooLarge",
    "SimpleRequest",
    "StoreError",
    "UnknownOption",
    "UnusableCall",
    "__version__",
    "batched_task",
]

try:
    __version__ = version("redis-batches")
except PackageNotFoundError:
    # It runs from a directory of sources.
    __version__ = "0+unknown"
