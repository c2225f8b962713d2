"""What was claimed as the calls that a function is given, and why some of them must not run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

from celery.exceptions import WorkerLostError
from celery.utils.nodenames import gethostname
from kombu.serialization import prepare_accept_content

from redis_batches.buffer.lease import Lease
from redis_batches.core.batch_task import BatchTask
from redis_batches.core.errors import BatchesError, PutBackTooOften
from redis_batches.core.requests import Claimed
from redis_batches.core.settings import Settings
from redis_batches.runs.request import SimpleRequest
from redis_batches.wire import protocol
from redis_batches.wire.envelope import CorruptEnvelope, Envelope, decode

#: A request that killed its worker so often, alone in its batch, is not run again.
MAX_CRASHES_ALONE = 3

#: Calls that cannot run, each with the reason.
Unrunnable: TypeAlias = Sequence[tuple[SimpleRequest, Exception]]


def decode_claimed(
    task: BatchTask, lease: Lease, settings: Settings
) -> tuple[list[SimpleRequest], Unrunnable]:
    """Returns the calls of a claimed batch that can run, and the others.

    Args:
        task: The batch task.
        lease: What was claimed.
        settings: The limits of the store.
    """
    route = json.loads(lease.bells.route or "{}")
    accept = prepare_accept_content(task.app.conf.accept_content)
    hostname = task.request.hostname or gethostname()
    # Its caller, with limits of its own, may have compressed a call.
    limit = max(settings.max_payload, settings.flush_bytes)
    runnable: list[SimpleRequest] = []
    unrunnable: list[tuple[SimpleRequest, Exception]] = []
    for claimed in lease.requests:
        envelope, exc = _decode(claimed, accept, settings.max_put_backs, limit)
        request = SimpleRequest.of(
            task.name,
            claimed,
            envelope,
            hostname=hostname,
            route=route,
            ignore_result=task.ignore_result,
        )
        if exc is None:
            runnable.append(request)
        else:
            unrunnable.append((request, exc))
    return runnable, unrunnable


def _decode(
    claimed: Claimed, accept: Any, most_put_backs: int, limit: int
) -> tuple[Envelope, Exception | None]:
    """Returns a call, and why it must not run, if so."""
    attempts = claimed.attempts
    try:
        envelope = decode(claimed.envelope, accept, limit)
    except BatchesError as exc:
        return Envelope(), exc
    odd = protocol.drop_odd(envelope)
    if attempts.revoked:
        return envelope, None
    if odd:
        wrong = ", ".join(f"{name} is not {allowed}" for name, _, allowed in odd)
        return envelope, CorruptEnvelope(f"the stored request is no call: {wrong}")
    if attempts.lost:
        return envelope, WorkerLostError(
            "the worker died, and acks_late=False forbids a second run"
        )
    if attempts.alone >= MAX_CRASHES_ALONE:
        return envelope, WorkerLostError(
            f"the worker died {attempts.crashes} times while it ran this request, "
            f"{attempts.alone} times with no other in its batch"
        )
    if attempts.put_backs >= most_put_backs:
        return envelope, PutBackTooOften("", claimed.id, attempts.put_backs, "")
    return envelope, None
