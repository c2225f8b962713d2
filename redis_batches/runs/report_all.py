"""Reports what the end of a function made of all its requests: together, as far as that goes."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery.utils.log import get_logger

from redis_batches.core.outcomes import Verb
from redis_batches.runs import report
from redis_batches.runs.batch import Fate
from redis_batches.runs.canvas import is_plain
from redis_batches.runs.decide import Ending
from redis_batches.runs.endings import failure_of, is_exception
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.request import SimpleRequest
from redis_batches.runs.states import CHUNK

logger = get_logger(__name__)


def report_all(reporter: Reporter, ending: Ending) -> bool:
    """Settles what is undecided when a function ended.

    Args:
        reporter: Who settles the requests of the run.
        ending: What each is to be told.

    Returns:
        Whether any of them will run again.
    """
    reporter.ended = True
    _report_together(reporter, ending)
    values = {request.id: value for request, value in ending.outcomes}
    rest = [request for request in reporter.batch.undecided if request.id in values]
    kept = [_report_one(reporter, request, values[request.id], ending) for request in rest]
    return any(kept)


def _report_one(reporter: Reporter, request: SimpleRequest, value: Any, ending: Ending) -> bool:
    if not is_exception(value):
        reporter.succeed(request, value, store=ending.store)
    elif ending.final:
        reporter.fail(request, value)
    else:
        return _decide_or_fail(reporter, request, value, ending.verb)
    return False


def _decide_or_fail(reporter: Reporter, request: SimpleRequest, exc: Any, verb: Verb) -> bool:
    """Decides one request; what cannot be done with it, such as a retry, fails it alone."""
    try:
        return reporter.decide(request, exc, verb)
    except Exception as why:
        if reporter.writer.may_pass(why) or reporter.batch.is_decided(request.id):
            raise
        reporter.fail_instead(request, why)
        return False


def _report_together(reporter: Reporter, ending: Ending) -> None:
    """Reports many outcomes with few round trips; what it leaves open goes one by one."""
    if reporter.lease is None:
        return
    batch, writer = reporter.batch, reporter.writer
    rest = [
        (request, failure_of(value) if is_exception(value) else value)
        for request, value in ending.outcomes
        if is_plain(request) and (ending.final or reporter.rules.is_final(request, value))
    ]
    while chunk := rest[:CHUNK]:
        writer.confirm()
        batch.suspect(request.id for request, _ in chunk)
        write = partial(report.together, reporter.task, chunk, store=ending.store)
        try:
            reported = writer.write(write)
        except Exception as exc:
            if writer.may_pass(exc):
                raise
            logger.warning("batch %s reports its outcomes one by one: %r", reporter.token, exc)
            return
        values = {request.id: value for request, value in chunk}
        for request in reported:
            batch.values[request.id] = values[request.id]
            batch.decide(request.id, Fate.FORGOTTEN)
        # Large ones go out in parts; if none did, they can only be reported one by one.
        left = [pair for pair in chunk if not batch.is_decided(pair[0].id)] if reported else []
        rest = left + rest[CHUNK:]
