"""What of a claimed batch its function must not see: it is settled already, or is not to run."""

from __future__ import annotations

from collections.abc import Sequence

from redis_batches.buffer.store import Store
from redis_batches.core.errors import PutBackTooOften
from redis_batches.runs import earlier
from redis_batches.runs.decode import Unrunnable
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.request import SimpleRequest
from redis_batches.wire.stamps import stamp_keys


def drop_settled(
    reporter: Reporter, store: Store, unrunnable: Unrunnable, *, ran: bool = False
) -> None:
    """Takes out what an earlier run settled, gives up what cannot run, revokes what may not.

    Args:
        reporter: Who settles the requests of the run.
        store: The task's store.
        unrunnable: What cannot run, with the reason.
        ran: Whether this very run may have settled requests before it died; then none is revoked.
    """
    batch = reporter.batch
    seen_before = [request for request in batch.undecided if ran or request.attempt > 1]
    drop_stored(reporter, seen_before)
    _give_up(reporter, store, [(r, e) for r, e in unrunnable if batch.find(r.id) is not None])
    if ran:
        return
    stamped = _revoked_by_stamps(reporter, store)
    for request, reason in [(r, why) for r in batch.requests if (why := _why_not(r, stamped))]:
        reporter.revoke(request, reason)
    batch.show_undecided()


def drop_stored(reporter: Reporter, requests: Sequence[SimpleRequest]) -> None:
    """Takes out those of some requests whose final state is stored already."""
    if requests:
        stored = earlier.complete(reporter.task, requests, reporter.writer)
        reporter.batch.leave_out(stored)


def _give_up(reporter: Reporter, store: Store, unrunnable: Unrunnable) -> None:
    tired = [request.id for request, exc in unrunnable if isinstance(exc, PutBackTooOften)]
    reasons = dict(zip(tired, store.last_errors(tired), strict=True)) if tired else {}
    for request, exc in unrunnable:
        if request.id in reasons:
            times = request.attempts.put_backs
            exc = PutBackTooOften(reporter.task.name, request.id, times, reasons[request.id])
        reporter.give_up(request, exc)


def _revoked_by_stamps(reporter: Reporter, store: Store) -> set[str]:
    """Returns the ids of requests that have a stamp which was revoked before they were made."""
    requests, lease = reporter.batch.requests, reporter.lease
    keys = {r.id: set(stamp_keys(stamps)) for r in requests if (stamps := r.stamps)}
    if not keys or lease is None:
        return set()
    found = store.still_revoked(set().union(*keys.values()), lease.started_ms)
    return {task_id for task_id, own in keys.items() if own & found}


def _why_not(request: SimpleRequest, stamped: set[str]) -> str | None:
    """Returns why a request is not to be run any more, if so, in Celery's words.

    Args:
        request: The request.
        stamped: Ids of those that a stamp revoked.
    """
    if request.attempts.revoked or request.id in stamped:
        return "revoked"
    return "expired" if request.is_expired() else None
