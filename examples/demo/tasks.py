"""The two batch tasks: a click counter, and a web API that is asked for many domains at once.

Celery finds the broker and the result backend in $CELERY_BROKER_URL and $CELERY_RESULT_BACKEND.
"""

from __future__ import annotations

from collections import Counter
from urllib.parse import urlsplit

from celery import Celery

from examples.demo import api, ledger
from redis_batches import SimpleRequest, batched_task

FLUSH_EVERY = api.MAX_DOMAINS
FLUSH_INTERVAL = 1.0

app = Celery("examples.demo")
# When the private server goes, the processes that need it go, too.
app.conf.update(broker_connection_retry=False, broker_connection_retry_on_startup=False)


@batched_task(app=app, flush_every=FLUSH_EVERY, flush_interval=FLUSH_INTERVAL, ignore_result=True)
def count_click(requests: list[SimpleRequest]) -> None:
    """Adds up the clicks of many calls: one write per page instead of one per click."""
    ledger.record(requests, FLUSH_EVERY)
    ledger.add_clicks(Counter(request.kwargs["page"] for request in requests))


@batched_task(app=app, flush_every=FLUSH_EVERY, flush_interval=FLUSH_INTERVAL)
def reputation(requests: list[SimpleRequest]) -> list[api.Answer]:
    """Asks for the domains of many calls in one HTTP request; each caller gets its own answer."""
    ledger.record(requests, FLUSH_EVERY)
    domains = [urlsplit(request.args[0]).netloc for request in requests]
    answers = api.ask(set(domains))
    return [answers[domain] for domain in domains]
