"""Revoking in one process: what is told, what may fail, and what a worker's commands answer."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, signals, states
from celery.exceptions import Ignore
from celery.worker import state as worker_state
from celery.worker.control import Panel

from redis_batches import SimpleRequest, batched_task
from redis_batches.buffer.store import Store
from redis_batches.core.errors import StoreError
from redis_batches.core.settings import REVOKED_WINDOW_MS
from redis_batches.testing.worker import InProcess, in_process
from redis_batches.wire.envelope import Envelope, encode, read_headers
from redis_batches.worker import control
from tests.support import raw


def returns(requests: list[SimpleRequest]) -> list[int]:
    return [1] * len(requests)


@pytest.fixture
def here() -> Iterator[InProcess]:
    """A task in this process."""
    with in_process(returns, 4) as made:
        yield made


class Timer:
    """Keeps what a worker would do later."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def call_after(self, seconds: float, fun: Any, args: Any = (), kwargs: Any = None) -> None:
        """Keeps one."""
        self.entries.append(lambda: fun(*args, **(kwargs or {})))


class Worker:
    """What a command gets of its worker."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.consumer = self
        self.timer = Timer()


@pytest.fixture
def worker(here: InProcess, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker of the app, whose commands are those of this package."""
    monkeypatch.setattr(Panel, "data", dict(Panel.data))
    made = Worker(here.task.app)
    control.RevokeStep(made)
    return made


def test_the_signal_is_sent(here: InProcess) -> None:
    """As Celery's workers send it; and what is claimed without being run sends it, too."""
    seen: list[dict[str, Any]] = []

    def note(**fields: Any) -> None:
        seen.append(fields)

    signals.task_revoked.connect(note)
    try:
        here.task.delay().revoke()
    finally:
        signals.task_revoked.disconnect(note)
    (fields,) = seen
    assert (fields["sender"].name, fields["terminated"]) == (here.task.name, False)
    assert (fields["signum"], fields["expired"]) == (None, False)


def test_a_revoke_that_is_not_accepted_raises() -> None:
    """Redis cannot be reached."""
    app = Celery("nowhere", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(redis_batches_url="redis://127.0.0.1:1/0", redis_batches_retries=0)
    batched_task(app=app, name="nowhere", shared=False)(returns)

    with pytest.raises(StoreError):
        app.tasks["nowhere"].AsyncResult("some-id").revoke()


def test_what_cannot_be_told_is_not_undone(
    here: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result backend is down: the request waits, and whoever claims it tells."""
    monkeypatch.setattr("redis_batches.operate.revoke.PATIENCE", 0.0)
    result = here.task.delay()
    with monkeypatch.context() as down:
        down.setattr(here.task.backend, "store_result", refuse)
        result.revoke()
    assert (result.state, here.task.stats()["delayed"]) == (states.PENDING, 1)

    store = here.task.inspector._store
    (group,) = store.groups()
    here.bells = [store.promote(group, [], here.task.trigger)]
    raw.client(store).zadd(raw.key(store, "delayed"), {f"{group}:{result.id}": 0})
    here.bells = [store.promote(group, [result.id], here.task.trigger)]
    with pytest.raises(Ignore):
        here.answer()
    assert result.state == states.REVOKED
    assert here.task.stats()["acked"] == 1


def refuse(*_: Any, **__: Any) -> None:
    raise ConnectionRefusedError("the result backend is down")


def test_an_outcome_that_was_told_stays(here: InProcess) -> None:
    """The run died before it acked: the revoke came too late."""
    result = here.task.delay()
    store = here.task.inspector._store
    (group,) = store.groups()
    lease = store.claim(group, here.task.trigger, force=True)
    here.task.backend.mark_as_failure(result.id, ValueError("told"))
    store.reclaim(lease.token, group, here.task.trigger, seen_dead=True)
    result.revoke()

    assert result.state == states.FAILURE
    assert here.task.stats()["waiting"] == 0


def test_revoked_of_what_ran_is_told_whole(here: InProcess) -> None:
    """Celery stores REVOKED by itself, and tells nobody else."""
    seen: list[str] = []
    result = here.task.delay()
    store = here.task.inspector._store
    (group,) = store.groups()
    lease = store.claim(group, here.task.trigger, force=True)
    store.reclaim(lease.token, group, here.task.trigger, seen_dead=True)
    here.task.backend.mark_as_revoked(result.id, "revoked")

    def note(request: Any, **_: Any) -> None:
        seen.append(request.id)

    signals.task_revoked.connect(note)
    try:
        result.revoke()
    finally:
        signals.task_revoked.disconnect(note)

    assert seen == [result.id]


def test_a_copy_without_its_task_only_asks_the_workers(here: InProcess) -> None:
    """As any other result does."""
    result = pickle.loads(pickle.dumps(here.task.delay()))
    result.app = Celery("other", broker="memory://", set_as_current=False)
    result.revoke()
    assert here.task.stats()["waiting"] == 1

    result.app = here.task.app
    result.revoke()
    assert here.task.stats()["waiting"] == 0


def test_a_command_leaves_other_tasks_to_celery(here: InProcess, worker: Worker) -> None:
    """All are listed as revoked; what runs shows no REVOKED, which Celery would store."""
    waits, runs = here.task.delay(), here.task.delay()
    store = here.task.inspector._store
    (group,) = store.groups()
    waits.revoke()
    store.claim(group, here.task.trigger, force=True)
    delayed = here.task.apply_async(countdown=60)
    worker_state.revoked.clear()
    reply = Panel.data["revoke"](worker, [runs.id, delayed.id, "plain"])["ok"]

    assert f"of which {{'{runs.id}'}} end with the batch" in reply
    assert "plain" in reply
    assert set(worker_state.revoked) == {runs.id, delayed.id, "plain"}
    assert [one.state for one in (waits, runs, delayed)] == ["REVOKED", "PENDING", "REVOKED"]
    worker_state.revoked.clear()


def test_a_command_waits_for_redis(
    here: InProcess, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again until it is done, and Celery does not store REVOKED meanwhile."""
    result = here.task.delay()
    with monkeypatch.context() as down:
        down.setattr(Store, "cancel", lambda *_, **__: (_ for _ in ()).throw(StoreError("down")))
        assert "cannot be reached" in Panel.data["revoke"](worker, result.id)["ok"]
    assert (result.state, here.task.stats()["waiting"]) == (states.PENDING, 1)

    worker.timer.entries.pop()()
    assert (result.state, here.task.stats()["waiting"]) == (states.REVOKED, 0)
    assert result.id in worker_state.revoked
    worker_state.revoked.clear()


def test_a_search_goes_on_when_redis_is_back(
    here: InProcess, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its beginning; it takes the stamps as the command line gives them, too."""
    result = here.task.apply_async(stamped_headers=["tenant"], tenant="a")
    with monkeypatch.context() as down:
        down.setattr(Store, "cancel", lambda *_, **__: (_ for _ in ()).throw(StoreError("down")))
        Panel.data["revoke_by_stamped_headers"](worker, ["tenant=a"])
    worker_state.revoked_stamps.clear()
    assert result.state == states.PENDING
    while worker.timer.entries:
        worker.timer.entries.pop()()

    assert result.state == states.REVOKED


@pytest.mark.parametrize(
    ("revoked", "stamps", "does_not_run"),
    [
        ({"tenant": "a"}, {"tenant": "a"}, True),
        ({"tenant": ["b", "a"]}, {"tenant": "a"}, True),
        ({"tenant": "a"}, {"tenant": ["b", "a"]}, True),
        ({"tenant": 5}, {"tenant": 5}, True),
        ({"tenant": "5"}, {"tenant": 5}, False),
        ({"tenant": "a"}, {"tenant": "b"}, False),
        ({"tenant": "a"}, {"user": "a"}, False),
        ({"tenant": "a"}, {}, False),
        ({"tenant": None}, {"tenant": "a"}, False),
    ],
    ids=str,
)
def test_stamps_are_remembered(
    here: InProcess, revoked: dict[str, Any], stamps: dict[str, Any], does_not_run: bool
) -> None:
    """By the rule of Celery's workers; the others of the batch run."""
    here.task.AsyncResult("any").revoke_by_stamped_headers(revoked)
    result = here.task.apply_async((1,), stamped_headers=[*stamps], **stamps)
    plain = here.task.delay(2)
    here.task.flush()
    here.answer(force=True)

    assert result.state == (states.REVOKED if does_not_run else states.SUCCESS)
    assert plain.result == 1
    assert here.task.stats()["waiting"] == 0


def test_stamps_are_forgotten_as_ids_are(here: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """After three hours, of the server's clock."""
    store = here.task.inspector._store
    here.task.AsyncResult("any").revoke_by_stamped_headers({"tenant": ["a", "b"]})
    key = raw.key(store, "revoked")
    remembered = raw.client(store).zrange(key, 0, -1, withscores=True)
    assert len(remembered) == 2
    raw.client(store).zadd(key, {remembered[0][0]: remembered[0][1] - REVOKED_WINDOW_MS - 1000})
    raw.client(store).zadd(key, {remembered[1][0]: remembered[1][1] - REVOKED_WINDOW_MS + 60_000})

    calls = [here.task.apply_async((1,), stamped_headers=["tenant"], tenant=x) for x in "ab"]
    here.task.flush()
    here.answer(force=True)
    assert sorted(result.state for result in calls) == [states.REVOKED, states.SUCCESS]


@pytest.mark.parametrize("odd", [5, "x", [], [{}], {"tenant": {}}, {"tenant": [[]]}, None], ids=str)
@pytest.mark.parametrize("name", ["stamps", "stamped_headers"])
def test_odd_stamps_stop_no_search(here: InProcess, name: str, odd: Any) -> None:
    """They match nothing; what is stamped as it should be is found."""
    odd_one = here.task.delay()
    result = here.task.apply_async((1,), stamped_headers=["tenant"], tenant="a")
    store = here.task.inspector._store
    items = raw.key(store, "items")
    group, nonce, _ = raw.client(store).hget(items, odd_one.id).split(b":", 2)
    headers = {"stamps": {"tenant": "b"}, "stamped_headers": ["tenant", [], 5], name: odd}
    stored = b"%s:%s:%s" % (group, nonce, encode(Envelope(headers), "json"))
    raw.client(store).hset(items, odd_one.id, stored)
    here.task.AsyncResult("any").revoke_by_stamped_headers({"tenant": ["a", ["z"]], "x": None})

    assert result.state == states.REVOKED
    assert odd_one.state == states.PENDING


def test_the_commands_are_put_in_front_once(worker: Worker) -> None:
    """A worker makes its steps anew at each connection."""
    before = dict(Panel.data)
    control.RevokeStep(worker)

    assert Panel.data == before


@pytest.mark.parametrize("data", [b"", b"1", b"1\n[]", b"1{\n[]", b"1[]\n[]", b"9{}\n[]"])
def test_headers_that_cannot_be_read_are_none(data: bytes) -> None:
    """A search does not stop at them."""
    assert read_headers(data) == {}


@pytest.mark.parametrize("properties", [{}, {"priority": 1}])
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_headers_are_read_without_the_body(properties: dict[str, Any], serializer: str) -> None:
    """Whatever its serializer is, and what else is kept."""
    headers = {"stamps": {"a": 1}}
    assert read_headers(encode(Envelope(headers, properties=properties), serializer)) == headers
