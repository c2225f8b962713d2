"""The published examples of celery-batches, with only the import line changed.

Each task body stands as its documentation has it; what differs is named in a comment.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlparse
from urllib.request import urlopen

from celery import Celery, Task, current_app, shared_task

from redis_batches import Batches

app = Celery(
    "dropin",
    broker=os.environ.get("TEST_BROKER", "redis://127.0.0.1:1/0"),
    backend=os.environ.get("TEST_BACKEND"),
)
app.conf.update(broker_connection_retry_on_startup=True, worker_prefetch_multiplier=0)
app.conf.task_create_missing_queues = True


def write(name: str, data: Any) -> None:
    """Appends a line to a file that tests read."""
    with (Path(os.environ["TEST_FOLDER"]) / name).open("a") as file:
        file.write(json.dumps(data) + "\n")


def read(name: str) -> list[Any]:
    """Returns the lines of such a file."""
    path = Path(os.environ["TEST_FOLDER"]) / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# Flush after 100 messages, or 10 seconds.  (Here: 1 second.)
@app.task(base=Batches, flush_every=100, flush_interval=1)
def count_click(requests):  # type: ignore[no-untyped-def]
    """Counts clicks."""
    count = Counter(request.kwargs["url"] for request in requests)
    for url, count in count.items():  # noqa: B020 - as published
        print(f">>> Clicks: {url} -> {count}")
        write("clicks", [url, count])


def wot_api_real(urls):  # type: ignore[no-untyped-def]
    """Asks the API for all domains at once; the address is that of the test's own server."""
    domains = [urlparse(url).netloc for url in urls]
    query_string = urlencode({"hosts": ("/").join(set(domains)) + "/"})
    data = query_string.encode("ascii")
    response = urlopen(os.environ["TEST_WOT_API"], data)
    answers = json.load(response)  # The published line reads the response once per domain.
    return [answers[domain] for domain in domains]


@app.task(base=Batches, flush_every=100, flush_interval=1)
def wot_api(requests):  # type: ignore[no-untyped-def]
    """Stores a response for each request."""
    sig = lambda url: url  # noqa: E731 - as published
    reponses = wot_api_real(sig(*request.args, **request.kwargs) for request in requests)
    # use mark_as_done to manually return response data
    for response, request in zip(reponses, requests):  # noqa: B905 - as published
        app.backend.mark_as_done(request.id, response, request=request)


@shared_task(base=Batches, flush_every=100, flush_interval=1)
def shared(requests):  # type: ignore[no-untyped-def]
    """Uses the current app's backend."""
    for request in requests:
        current_app.backend.mark_as_done(request.id, request.args[0] + 1, request=request)


def _plain(requests):  # type: ignore[no-untyped-def]
    for request in requests:
        app.backend.mark_as_done(request.id, sorted(request.kwargs.items()))


plain_call = shared_task(_plain, base=Batches, flush_every=2, flush_interval=1, name="plain_call")


@app.task(base=Batches, flush_every=100, flush_interval=1)
def retry_new(requests):  # type: ignore[no-untyped-def]
    """Retries with a new call, as published; the countdown is 1 second."""
    for request in requests:
        write("retry_new", [request.id, request.args])
        if len(read("retry_new")) > 1:
            app.backend.mark_as_done(request.id, "done", request=request)
        else:
            retry_new.apply_async(args=request.args, kwargs=request.kwargs, countdown=1)


@app.task(base=Batches, flush_every=100, flush_interval=1)
def retry_same(requests):  # type: ignore[no-untyped-def]
    """Retries with the same id, so that the caller's result is that of the retry."""
    for request in requests:
        write("retry_same", [request.id, request.args])
        if len(read("retry_same")) > 1:
            app.backend.mark_as_done(request.id, "done", request=request)
        else:
            retry_same.apply_async(
                args=request.args, kwargs=request.kwargs, task_id=request.id, countdown=1
            )


@app.task(base=Batches, flush_every=5, flush_interval=0.00001, acks_late=True, queue="quick")
def quick(requests):  # type: ignore[no-untyped-def]
    """Has an interval shorter than any timer."""

    async def double(request):  # type: ignore[no-untyped-def]
        await asyncio.sleep(0)
        return 2 * request.args[0]

    async def all_of_them():  # type: ignore[no-untyped-def]
        return await asyncio.gather(*(double(request) for request in requests))

    for request, value in zip(requests, asyncio.run(all_of_them()), strict=True):
        app.backend.mark_as_done(request.id, value, request=request)


class Counted(Task):  # type: ignore[type-arg]
    """A user's own task class with state."""

    abstract = True
    seen = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls `run` as Flask's documented task class does."""
        type(self).seen += 1
        return self.run(*args, **kwargs)


class BatchesFirst(Batches, Counted):
    """A mixin in one order."""

    abstract = True


class CountedFirst(Counted, Batches):
    """And in the other."""

    abstract = True


@app.task(base=BatchesFirst, flush_every=2, flush_interval=1, bind=True)
def batches_first(self, requests):  # type: ignore[no-untyped-def]
    """Tells the state of its class."""
    for request in requests:
        app.backend.mark_as_done(request.id, self.seen, request=request)


@app.task(base=CountedFirst, flush_every=2, flush_interval=1, bind=True)
def counted_first(self, requests):  # type: ignore[no-untyped-def]
    """Tells the state of its class."""
    for request in requests:
        app.backend.mark_as_done(request.id, self.seen, request=request)


@app.task(base=Batches, flush_every=3, flush_interval=1)
def attributes(requests):  # type: ignore[no-untyped-def]
    """Writes down every attribute of a request."""
    import pickle

    for request in requests:
        copy = pickle.loads(pickle.dumps(request))
        names = "id name args kwargs delivery_info hostname ignore_result reply_to correlation_id"
        found = {name: getattr(copy, name) for name in names.split()}
        headers = {key: value for key, value in copy.request_dict.items() if key != "properties"}
        write("attributes", {**found, "request_dict": headers, "chord": copy.chord})
