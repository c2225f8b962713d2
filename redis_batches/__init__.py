"""Batches of Celery task calls, accumulated in Redis."""

from redis_batches.decorator import batched_task
from redis_batches.errors import (
    BacklogFull,
    BatchesError,
    DuplicateTaskId,
    InvalidTaskId,
    LeaseLost,
    OptionError,
    OutOfMemory,
    PayloadTooLarge,
    StoreError,
    UnusableCall,
)
from redis_batches.request import SimpleRequest
from redis_batches.task import Batches

__all__ = [
    "BacklogFull",
    "Batches",
    "BatchesError",
    "DuplicateTaskId",
    "InvalidTaskId",
    "LeaseLost",
    "OptionError",
    "OutOfMemory",
    "PayloadTooLarge",
    "SimpleRequest",
    "StoreError",
    "UnusableCall",
    "batched_task",
]
