"""What is revoked does not run: its caller is told REVOKED, wherever the call was."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group, states
from celery.exceptions import ChordError, TaskRevokedError

from tests.support import raw
from tests.support.ledger import ledger
from tests.support.processes import Cluster, wait_until_they_listen
from tests.support.waiting import wait_until

APP = "tests.integration.apps.revoking"
#: Those of the fixture `tasks`; a broadcast with `limit=` ends when all of them have replied.
WORKERS = 2
#: Celery's result backend calls it, here in the process of the test.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")


@pytest.fixture
def tasks(cluster: Cluster, shop: Any) -> Any:
    """The tasks, with two workers that serve them."""
    for _ in range(WORKERS):
        cluster.worker()
    wait_until_they_listen(shop.app, WORKERS)
    return shop


@pytest.fixture
def go_on(tmp_path: Path) -> Path:
    """A file that lets the held batch go on."""
    return tmp_path / "go on"


def assert_revoked(result: Any) -> None:
    """Its caller gets TaskRevokedError."""
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert result.state == states.REVOKED


def answers(replies: list[dict[str, Any]]) -> list[str]:
    """Returns what each of the two workers replied."""
    found = [str(reply) for one in replies for reply in one.values()]
    assert len(found) == WORKERS
    return found


def is_flagged(app: Any, task_id: str) -> bool:
    """Whether both workers remember that an id was revoked."""
    found = app.control.inspect(timeout=10, limit=WORKERS).revoked() or {}
    return len(found) == WORKERS and all(task_id in ids for ids in found.values())


def hold(tasks: Any, *words: str) -> list[Any]:
    """Calls the held task, and waits until the batch runs."""
    results = [tasks.held.delay(word) for word in words]
    wait_until(ledger, description="the batch runs")
    return results


# -- Without any worker: the caller alone


def test_a_waiting_call_ends_at_once_without_a_worker(cluster: Cluster, shop: Any) -> None:
    """`result.revoke()` needs nobody but Redis."""
    results = [shop.waiting.delay(number) for number in range(3)]
    results[1].revoke()

    assert_revoked(results[1])
    assert (shop.waiting.stats()["waiting"], shop.waiting.stats()["revoked"]) == (2, 1)
    cluster.worker()
    shop.waiting.flush()
    assert [results[0].get(timeout=20), results[2].get(timeout=20)] == [0, 2]
    assert [run["args"] for run in ledger()] == [[[0], [2]]]


def test_a_delayed_call_ends_at_once_without_a_worker(cluster: Cluster, shop: Any) -> None:
    """Its countdown is not waited for; nothing is left."""
    result = shop.quick.apply_async((1,), countdown=3600)
    result.revoke()

    assert_revoked(result)
    stats = shop.quick.stats()
    assert (stats["waiting"], stats["delayed"]) == (0, 0)


def test_a_chord_of_revoked_parts_fails(cluster: Cluster, shop: Any) -> None:
    """Its body is never called, and whoever waits for it gets an exception."""
    body = chord([shop.waiting.s(number) for number in range(2)])(shop.total.s())
    for part in body.parent.results:
        part.revoke()

    with pytest.raises((ChordError, TaskRevokedError)):
        body.get(timeout=20)


@pytest.mark.parametrize("kind", ["plain", "in a group", "a copy", "by id", "in a chain"])
def test_every_result_of_a_batch_task_can_revoke(cluster: Cluster, shop: Any, kind: str) -> None:
    """However it was come by."""
    if kind == "in a group":
        result = group(shop.waiting.s(number) for number in range(2)).apply_async().results[1]
    elif kind == "in a chain":
        result = chain(shop.waiting.s(1), shop.quick.s()).apply_async().parent
    else:
        result = shop.waiting.delay(1)
    if kind == "a copy":
        result = pickle.loads(pickle.dumps(result))
    elif kind == "by id":
        result = shop.waiting.AsyncResult(result.id)
    result.revoke()

    assert_revoked(result)
    assert result.as_tuple() == ((result.id, None), None)


def test_calls_are_revoked_by_their_stamps(cluster: Cluster, shop: Any) -> None:
    """A value or several, of one or several stamps; without a worker."""
    calls = [{"tenant": "a"}, {"tenant": "b"}, {"tenant": ["c", "d"]}, {"user": "a"}, {}]
    results = [
        shop.waiting.apply_async((1,), stamped_headers=list(stamps), **stamps) for stamps in calls
    ]
    results[0].revoke_by_stamped_headers({"tenant": ["a", "d"]})

    assert [result.state for result in results] == [
        states.REVOKED,
        states.PENDING,
        states.REVOKED,
        states.PENDING,
        states.PENDING,
    ]


def test_a_call_with_an_id_that_was_revoked_does_not_run(cluster: Cluster, shop: Any) -> None:
    """As Celery's workers remember it; the caller is told by who would have run it."""
    shop.quick.AsyncResult("later").revoke()
    result = shop.quick.apply_async((1,), task_id="later")
    cluster.worker()

    assert_revoked(result)
    wait_until(lambda: shop.quick.stats()["waiting"] == 0, description="forgotten")
    assert ledger() == []


@pytest.mark.parametrize("by", ["result", "control"])
def test_a_call_with_a_stamp_that_was_revoked_does_not_run(
    cluster: Cluster, shop: Any, by: str
) -> None:
    """As Celery's workers remember it, but for three hours; other stamps do no harm."""
    stamps = {"tenant": ["a", "c"]}
    if by == "result":
        shop.quick.AsyncResult("any").revoke_by_stamped_headers(stamps)
    else:
        cluster.worker()
        wait_until_they_listen(shop.app, 1)
        shop.app.control.revoke_by_stamped_headers(stamps, reply=True, timeout=20, limit=1)
    calls = [{"tenant": "a"}, {"tenant": ["b", "c"]}, {"tenant": "b"}, {"user": "a"}, {}]
    results = [
        shop.quick.apply_async((n,), stamped_headers=list(each), **each)
        for n, each in enumerate(calls)
    ]
    if by == "result":
        cluster.worker()

    assert_revoked(results[0])
    assert_revoked(results[1])
    assert [result.get(timeout=20) for result in results[2:]] == [2, 3, 4]
    assert sorted(args for run in ledger() for args in run["args"]) == [[2], [3], [4]]


def test_a_canceller_that_dies_is_made_good(cluster: Cluster, shop: Any) -> None:
    """A worker tells when its lease has ended, and does not run the call."""
    store = shop.waiting.inspector._store
    result = shop.waiting.delay(1)
    (name,) = store.groups()
    lease, _ = store.cancel(name, [result.id], shop.waiting.trigger)
    assert lease is not None
    raw.client(store).zadd(raw.key(store, "leases"), {lease.token: 0})
    cluster.worker()

    assert_revoked(result)
    assert ledger() == []


def test_a_purge_removes_doorbells_and_no_calls(cluster: Cluster, shop: Any) -> None:
    """As the page on operations says: they run when a sweep has rung for them again."""
    results = [shop.quick.delay(number) for number in range(5)]
    assert shop.app.control.purge() == 5

    cluster.worker()
    assert [result.get(timeout=30) for result in results] == list(range(5))


# -- By the workers


def test_many_calls_are_revoked_by_the_workers(cluster: Cluster, tasks: Any) -> None:
    """`app.control.revoke` with a list, also of plain and unknown tasks; each is told once."""
    results = [tasks.waiting.delay(number) for number in range(250)]
    results.append(tasks.quick.apply_async((1,), countdown=3600))
    later = tasks.plain.apply_async(countdown=3600)
    ids = [result.id for result in results]
    wanted = [*ids, later.id, "nobody"]
    replies = tasks.app.control.revoke(wanted, reply=True, timeout=20, limit=WORKERS)

    for result in results:
        assert_revoked(result)
    assert all("flagged as revoked" in reply for reply in answers(replies))
    wait_until(lambda: is_flagged(tasks.app, later.id), description="flagged")
    stats = tasks.waiting.stats()
    assert (stats["waiting"], stats["running"], stats["revoked"]) == (0, 0, 250)
    assert tasks.waiting.flush() <= 1
    assert ledger() == []
    told = "".join(worker.output() for worker in cluster.started)
    assert f"Discarding revoked task: {tasks.waiting.name}[{results[0].id}]" in told
    assert "???" not in told


def test_a_retry_that_waits_ends_at_once(tasks: Any) -> None:
    """It waited for an hour."""
    result = tasks.retried.delay()
    wait_until(lambda: tasks.retried.stats()["delayed"] == 1, description="delayed")
    tasks.app.control.revoke(result.id)

    assert_revoked(result)
    assert len(ledger()) == 1
    wait_until(lambda: tasks.retried.stats()["waiting"] == 0, description="forgotten")


@pytest.mark.parametrize("terminate", [False, True])
@pytest.mark.parametrize("by", ["result", "control"])
def test_what_runs_goes_on(tasks: Any, go_on: Path, by: str, terminate: bool) -> None:
    """Also with `terminate`: another call is in its batch. It never shows REVOKED."""
    first, second = hold(tasks, "a", "b")
    if by == "result":
        first.revoke(terminate=terminate, wait=True, timeout=1)
    else:
        options = {"reply": True, "timeout": 20, "limit": WORKERS}
        replies = tasks.app.control.revoke(first.id, terminate=terminate, **options)
        assert all("batch" in reply for reply in answers(replies))
    wait_until(lambda: tasks.held.stats()["revoked"] == 1, description="marked")
    assert first.state == states.PENDING
    go_on.touch()

    assert (first.get(timeout=20), second.get(timeout=20)) == ("a", "b")
    assert len(ledger()) == 1


@pytest.mark.parametrize("word", ["retry", "call again"])
def test_what_runs_is_not_retried(tasks: Any, go_on: Path, word: str) -> None:
    """As Celery's workers discard the retry of a revoked id; the hour is not waited for."""
    revoked, other = hold(tasks, word, "b")
    tasks.app.control.revoke(revoked.id, reply=True, timeout=20, limit=WORKERS)
    wait_until(lambda: tasks.held.stats()["revoked"] == 1, description="marked")
    go_on.touch()

    assert_revoked(revoked)
    assert other.get(timeout=20) == "b"
    assert len(ledger()) == 1


def test_a_revoked_part_fails_its_chord(tasks: Any) -> None:
    """When the others are done, as in Celery."""
    body = chord([tasks.quick.s(1), tasks.waiting.s(2)])(tasks.total.s())
    done, waits = body.parent.results
    assert done.get(timeout=20) == 1
    tasks.app.control.revoke(waits.id)

    with pytest.raises((ChordError, TaskRevokedError)):
        body.get(timeout=20)


def test_workers_revoke_by_stamps(tasks: Any, go_on: Path) -> None:
    """What waits ends, and what runs is not retried."""
    running = tasks.held.apply_async(("retry",), stamped_headers=["tenant"], tenant="a")
    wait_until(ledger, description="the batch runs")
    waits = tasks.waiting.apply_async((1,), stamped_headers=["tenant"], tenant="a")
    other = tasks.waiting.apply_async((1,), stamped_headers=["tenant"], tenant="b")
    tasks.app.control.revoke_by_stamped_headers({"tenant": "a"})

    assert_revoked(waits)
    wait_until(lambda: tasks.held.stats()["revoked"] == 1, description="marked")
    go_on.touch()
    assert_revoked(running)
    assert other.state == states.PENDING
    assert len(ledger()) == 1


def test_the_terminate_command_leaves_other_calls_alone(tasks: Any, go_on: Path) -> None:
    """Of `celery control terminate`."""
    first, second = hold(tasks, "a", "b")
    arguments = {"task_id": first.id, "signal": "KILL"}
    options = {"reply": True, "timeout": 20, "limit": WORKERS}
    replies = tasks.app.control.broadcast("terminate", arguments=arguments, **options)
    assert all("batch" in reply for reply in answers(replies))
    go_on.touch()

    assert (first.get(timeout=20), second.get(timeout=20)) == ("a", "b")


def test_plain_tasks_are_revoked_as_ever(tasks: Any) -> None:
    """Whatever this package puts in front."""
    result = tasks.plain.apply_async(countdown=3600)
    replies = tasks.app.control.revoke(result.id, reply=True, timeout=20, limit=WORKERS)

    assert len(answers(replies)) == WORKERS
    wait_until(lambda: is_flagged(tasks.app, result.id), description="flagged")
