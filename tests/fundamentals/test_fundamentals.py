"""The package in ten tests: read them from the top."""

from __future__ import annotations

import pytest
from celery import chain, group

from redis_batches import SimpleRequest, batched_task
from redis_batches.testing.worker import Worker


def test_1_a_call_is_stored_and_counts(worker: Worker) -> None:
    """A call is a request: it waits in Redis, and no batch runs before it is due."""

    @batched_task(flush_every=3, flush_interval=10, app=worker.app)
    def click(requests: list[SimpleRequest]) -> None:
        raise AssertionError("nothing is due")

    result = click.delay("/")
    worker.work()

    assert click.stats()["waiting"] == 1
    assert result.state == "PENDING"


def test_2_a_full_batch_runs(worker: Worker) -> None:
    """The call that fills a batch rings a doorbell; some worker claims the oldest three."""
    batches = []

    @batched_task(flush_every=3, flush_interval=10, app=worker.app)
    def click(requests: list[SimpleRequest]) -> None:
        batches.append([request.args[0] for request in requests])

    for url in "/a", "/b", "/c", "/d":
        click.delay(url)
    worker.work()

    assert batches == [["/a", "/b", "/c"]]
    assert click.stats()["waiting"] == 1


def test_3_an_interval_flushes(worker: Worker) -> None:
    """A batch that does not fill up runs when its oldest request has waited for long enough."""
    batches = []

    @batched_task(flush_every=3, flush_interval=10, app=worker.app)
    def click(requests: list[SimpleRequest]) -> None:
        batches.append([request.args[0] for request in requests])

    click.delay("/a")
    worker.wait(9)
    click.delay("/b")
    assert batches == []
    worker.wait(1)

    assert batches == [["/a", "/b"]]


def test_4_each_call_gets_its_own_result(worker: Worker) -> None:
    """The function returns a list with a result per request, in their order."""

    @batched_task(flush_every=2, flush_interval=10, app=worker.app)
    def double(requests: list[SimpleRequest]) -> list[int]:
        return [2 * request.args[0] for request in requests]

    results = double.delay_many([(1,), (2,)])
    worker.work()

    assert [result.get(timeout=5) for result in results] == [2, 4]


def test_5_one_fails_and_the_others_do_not(worker: Worker) -> None:
    """An exception in the place of a result fails that request alone."""

    @batched_task(flush_every=2, flush_interval=10, app=worker.app)
    def translate(requests: list[SimpleRequest]) -> list[object]:
        known = {"un": "one"}
        words = [request.args[0] for request in requests]
        return [known.get(word, KeyError(word)) for word in words]

    good, bad = translate.delay("un"), translate.delay("trois")
    worker.work()

    assert good.get(timeout=5) == "one"
    with pytest.raises(KeyError, match="trois"):
        bad.get(timeout=5)


def test_6_one_is_retried(worker: Worker) -> None:
    """It waits in Redis for its next attempt; the others have their results."""

    @batched_task(flush_every=2, flush_interval=10, app=worker.app)
    def fetch(requests: list[SimpleRequest]) -> list[int]:
        for request in requests:
            if request.args == ("slow",) and request.attempt == 1:
                request.retry(countdown=60)
        return [request.attempt for request in requests]

    fast, slow = fetch.delay("fast"), fetch.delay("slow")
    worker.work()
    assert (fast.get(timeout=5), slow.state) == (1, "RETRY")
    worker.wait(60)

    assert slow.get(timeout=5) == 2


def test_7_a_call_that_waits_is_revoked(worker: Worker) -> None:
    """Its caller is told at once, without a worker; it never runs."""
    ran = []

    @batched_task(flush_every=3, flush_interval=10, app=worker.app)
    def click(requests: list[SimpleRequest]) -> None:
        ran.extend(request.args[0] for request in requests)

    kept, revoked = click.delay("/kept"), click.delay("/revoked")
    revoked.revoke()
    assert revoked.state == "REVOKED"
    worker.wait(10)

    assert ran == ["/kept"]
    assert kept.state == "SUCCESS"


def test_8_a_dead_letter_is_kept_until_it_is_requeued(worker: Worker) -> None:
    """A call that used its retries fails, and can be looked at and run again."""
    broken = [True]

    @batched_task(1, 10, app=worker.app, autoretry_for=(OSError,), max_retries=0)
    def insert(requests: list[SimpleRequest]) -> list[str]:
        if broken:
            raise OSError("no database")
        return ["inserted" for _ in requests]

    result = insert.delay("row")
    worker.work()
    (letter,) = insert.inspector.list()
    assert (letter.id, letter.args, letter.error) == (result.id, ("row",), "OSError('no database')")

    broken.clear()
    insert.inspector.requeue(letter.id)
    worker.work()

    assert insert.AsyncResult(result.id).get(timeout=5) == "inserted"


def test_9_calls_are_parts_of_a_canvas(worker: Worker) -> None:
    """Chains, groups and chords go on call by call, whatever batches the calls were in."""

    @batched_task(flush_every=2, flush_interval=10, app=worker.app)
    def double(requests: list[SimpleRequest]) -> list[int]:
        return [2 * request.args[0] for request in requests]

    @batched_task(flush_every=2, flush_interval=10, app=worker.app)
    def total(requests: list[SimpleRequest]) -> list[int]:
        return [sum(request.args[0]) for request in requests]

    chord = group(chain(double.s(number), double.s()) for number in (1, 2)) | total.s()
    result = chord.apply_async()
    worker.work()
    worker.wait(10)

    assert result.get(timeout=5) == 4 + 8


def test_10_a_batch_outlives_its_worker(worker: Worker) -> None:
    """A worker holds a batch by a lease; when it dies that ends, and another one runs the batch."""

    @batched_task(flush_every=2, flush_interval=10, app=worker.app)
    def click(requests: list[SimpleRequest]) -> list[int]:
        return [request.attempt for request in requests]

    results = click.delay_many([("/a",), ("/b",)])
    worker.die()
    worker.wait(29)
    assert click.stats()["running"] == 2
    worker.wait(1)

    assert [result.get(timeout=5) for result in results] == [2, 2]
