"""What earlier runs of some calls stored, and what they left unreported when they died."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from typing import Any

from celery import states
from celery.app.task import Context

from redis_batches.buffer.chunks import chunked
from redis_batches.core.batch_task import BatchTask
from redis_batches.runs.canvas import with_what_hangs_on_it
from redis_batches.runs.report import is_ignored
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.state_writer import StateWriter
from redis_batches.runs.states import CHUNK, states_of


def complete(
    task: BatchTask, requests: Sequence[SimpleRequest], writer: StateWriter
) -> list[SimpleRequest]:
    """Reports to what hangs on calls whose final state is stored already; returns those calls."""
    found = writer.patiently(partial(settled, task, requests))
    for request, meta in found:
        writer.patiently(partial(report_rest, task, request, meta))
    return [request for request, _ in found]


def settled(
    task: BatchTask, requests: Sequence[SimpleRequest]
) -> list[tuple[SimpleRequest, dict[str, Any]]]:
    """Returns the calls whose final state an earlier run stored, each with what it stored."""
    if not task.backend.persistent:
        return []
    found = []
    for chunk in chunked((r for r in requests if not is_ignored(task, r)), CHUNK):
        stored = states_of(task.backend, [request.id for request in chunk])
        metas = [(request, stored.meta(request.id)) for request in chunk]
        found += [(request, meta) for request, meta in metas if _is_final(meta, request)]
    return found


def _is_final(meta: dict[str, Any], request: SimpleRequest) -> bool:
    """Whether a stored state is a call's final one.

    One that is older than the call is that of another one, which had the same id. REVOKED of what
    was revoked is reported again: Celery stores it by itself, and lets no chord know.
    """
    if meta.get("status") not in states.READY_STATES:
        return False
    if request.attempts.revoked and meta["status"] == states.REVOKED:
        return False
    stored, since = meta.get("date_done"), request.enqueued_at
    if stored is None or since is None:
        return True
    stored = datetime.fromisoformat(stored) if isinstance(stored, str) else stored
    return (stored if stored.tzinfo else stored.replace(tzinfo=timezone.utc)) >= since


def report_rest(task: BatchTask, request: SimpleRequest, meta: Mapping[str, Any]) -> None:
    """Reports to what hangs on a call whose final state an earlier run stored, and then died.

    What follows a success was sent before its state was stored. A part of a chord counts once in
    Redis, however often it is reported; other backends count it each time, so it is not there.

    Args:
        task: The batch task.
        request: The call.
        meta: What was stored.
    """
    if not request.embed:
        return
    backend: Any = task.backend
    result: Any = meta.get("result")
    failed = meta["status"] == states.FAILURE and isinstance(result, Exception)
    counts_once = getattr(backend, "_chord_zset", False)
    if not (counts_once or (failed and not request.chord)):
        return
    stores = bool(request.embed.get("chain"))

    def report(context: Context) -> None:
        if failed:
            backend.mark_as_failure(
                request.id, result, meta.get("traceback"), context, store_result=stores
            )
        elif request.chord:
            backend.on_chord_part_return(context, meta["status"], result)

    with_what_hangs_on_it(task, request, report)
