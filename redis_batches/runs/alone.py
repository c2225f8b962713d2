"""Calls that wait in no Redis, direct or eager ones: each is a batch of one."""

from __future__ import annotations

from typing import Any

from celery.exceptions import Retry
from celery.utils.nodenames import gethostname
from kombu.utils.uuid import uuid

from redis_batches.core.batch_task import BatchTask
from redis_batches.runs.decide import End, ending_of, results_of
from redis_batches.runs.report_all import report_all
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.running import call


def run_alone(task: BatchTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a call outside Redis (direct or eager) as a batch of one.

    Args:
        task: The batch task; `task.request` is the call's.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.

    Returns:
        The call's own result.

    Raises:
        Exception: What the call failed with.
    """
    context = task.request
    request = _request_of(task, args, kwargs)
    reporter = Reporter(task, None)
    reporter.batch.add([request])
    returned = call(reporter, task.function)
    if task.returns_results:
        results = results_of(task.name, [r.id for r in reporter.batch.requests], returned)
        report_all(reporter, ending_of(End(returned, results), reporter.batch.undecided))
        returned = None
    outcome = reporter.batch.values.get(request.id, returned)
    if isinstance(outcome, Retry) and not context.called_directly:
        when: Any = outcome.when
        raise task.retry(exc=outcome.exc, countdown=when)
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _request_of(task: BatchTask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SimpleRequest:
    context = task.request
    return SimpleRequest(
        context.id or uuid(),
        task.name,
        args,
        kwargs,
        dict(context.delivery_info or {}),
        context.hostname or gethostname(),
        context.ignore_result,
        context.reply_to,
        context.correlation_id,
        {**context.__dict__, "args": args, "kwargs": kwargs},
    )
