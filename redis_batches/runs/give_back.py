"""The end of a run: Redis gets back what runs again, and forgets the rest."""

from __future__ import annotations

from itertools import islice
from logging import ERROR, INFO

from celery.exceptions import Retry, TaskRevokedError
from celery.utils.log import get_logger

from redis_batches.buffer.lease import Lease
from redis_batches.core.outcomes import Outcome, Verb
from redis_batches.core.triggers import Bells
from redis_batches.runs.batch import Batch, Fate
from redis_batches.runs.endings import VERDICTS, is_exception, shown
from redis_batches.runs.request import SimpleRequest

logger = get_logger(__name__)

#: Requests that failed, or retry, that one line of the log names.
LOGGED_REQUESTS = 10
_NO_FAILURES = (*VERDICTS, TaskRevokedError)


def end(lease: Lease, task: str, batch: Batch[SimpleRequest], *, succeeded: bool) -> list[Bells]:
    """Gives back what runs again, and ends a batch.

    Args:
        lease: The run's.
        task: The task's name.
        batch: What was decided; what is undecided runs again.
        succeeded: Whether the function returned.

    Returns:
        The doorbells to ring.
    """
    claimed = [request.id for request in lease.requests]
    batch.put_back_rest(claimed, Verb.PUT_BACK, 0, "its run left it undecided")
    for request in batch:
        request.detach()
    bells = save(lease, batch, ends=True, succeeded=succeeded)
    if succeeded:
        _log_outcomes(lease.token, task, batch)
    return bells


def save(
    lease: Lease, batch: Batch[SimpleRequest], *, ends: bool = False, succeeded: bool = False
) -> list[Bells]:
    """Lets Redis know what was decided: gives back what runs again, and forgets the rest.

    Args:
        lease: The run's.
        batch: What was decided.
        ends: Whether the batch ends with it: then all was decided.
        succeeded: Whether the function returned.

    Returns:
        The doorbells to ring.
    """
    rest = batch.unsaved
    given_back = [each for each in rest.values() if isinstance(each, Outcome)]
    bells = lease.release(given_back) if given_back else []
    forgotten = [task_id for task_id, each in rest.items() if each is Fate.FORGOTTEN]
    if forgotten or ends:
        lease.ack(forgotten, ends=ends, well=succeeded)
    batch.note_saved(rest)
    return bells


def _log_outcomes(token: str, task: str, batch: Batch[SimpleRequest]) -> None:
    """Says which failed or retry; of a batch that raised, Celery logs the exception."""
    ended = {i: value for i, value in batch.values.items() if is_exception(value)}
    failed = {i: value for i, value in ended.items() if not isinstance(value, _NO_FAILURES)}
    retried = {i: value for i, value in ended.items() if isinstance(value, Retry)}
    for level, verb, found, text in (
        (ERROR, "failed", failed, shown),
        (INFO, "retry", retried, str),
    ):
        if found:
            logger.log(
                level,
                "%d of %d requests of batch %s of %s %s: %s%s",
                len(found),
                len(batch.values),
                token,
                task,
                verb,
                ", ".join(f"{i}: {text(found[i])}" for i in islice(found, LOGGED_REQUESTS)),
                ", ..." if len(found) > LOGGED_REQUESTS else "",
            )
