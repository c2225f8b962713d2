"""The results of a batch: stored together, as Celery would have stored each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from time import monotonic
from typing import Any

import pytest
import redis
from celery import Celery, states
from celery.backends.redis import RedisBackend
from celery.exceptions import Retry
from kombu.exceptions import OperationalError

from redis_batches import LeaseLost, SimpleRequest, batched_task
from redis_batches.core.requests import Attempts, Claimed
from redis_batches.driver.guest import GuestScript
from redis_batches.runs import earlier, report
from redis_batches.runs.decide import Ending
from redis_batches.runs.report_all import report_all
from redis_batches.runs.reporter import Reporter
from redis_batches.runs.state_writer import StateWriter
from redis_batches.runs.states import REFUSAL, Guard, can_gather
from redis_batches.testing.server import EmbeddedServer
from redis_batches.wire.envelope import Envelope
from tests.support.held import Held
from tests.support.proxy import LossyProxy

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)
Outcomes = list[tuple[SimpleRequest, Any]]


def raised(text: str) -> Exception:
    """Returns an exception with a traceback."""
    try:
        raise ValueError(text)
    except ValueError as exc:
        return exc


def ignore(requests: list[SimpleRequest]) -> None:
    """A batch function."""


class Unusual(Exception):
    """An exception whose state is more than its text."""


VALUES: list[Any] = [
    "text", 9007199254740993, None, ["é", 1.5, {}], {"a": [NOW]}, "x" * 5000, True,
    KeyError("not raised"), raised("raised"), Unusual("a", 2),
]  # fmt: skip
HEADERS: list[dict[str, Any]] = [
    {},
    {"origin": "gen1@host"},
    {"parent_id": "p", "root_id": "r", "group": "g", "group_index": 3},
    {"stamped_headers": ["s"], "stamps": {"s": "t"}, "shadow": "other", "retries": 2},
]
CONFIGURATIONS: list[dict[str, Any]] = [
    {},
    {"result_extended": True},
    {"result_expires": None},
    {"result_expires": 7, "result_failure_expires": 100_000},
    {"result_serializer": "pickle", "result_accept_content": ["pickle"]},
    {"result_backend_transport_options": {"global_keyprefix": "mine"}},
    {"result_compression": "gzip"},
    {"enable_utc": False, "timezone": "Europe/Berlin"},
]


class Stored:
    """A result backend on a real server, and what it stores and publishes.

    Attributes:
        task: A batch task whose results go there.
    """

    def __init__(self, url: str, configuration: dict[str, Any]) -> None:
        self.client = redis.Redis.from_url(url)
        app = Celery("results", broker="memory://", backend=url, set_as_current=False)
        app.conf.update(configuration)
        app.now = lambda: NOW
        self.task: Any = batched_task(10, app=app, name="stores", shared=False)(ignore)
        self._messages = self.client.pubsub(ignore_subscribe_messages=True)
        self._messages.psubscribe("*")
        self._messages.get_message(timeout=5)

    def request(self, task_id: str, headers: dict[str, Any], embed: Any = None) -> SimpleRequest:
        """Returns a call as a claim does."""
        return SimpleRequest.of(
            "stores",
            Claimed(task_id, 0, Attempts(), b""),
            Envelope(dict(headers), ((1,), {"a": "b"}, embed)),
            hostname="w@here",
            route={"routing_key": "celery"},
            ignore_result=False,
        )

    def take(self) -> tuple[dict[bytes, Any], list[Any]]:
        """Returns and forgets all keys with values and times to live, and all messages."""
        keys = {
            key: (self.client.get(key), self.client.ttl(key)) for key in self.client.scan_iter()
        }
        messages = []
        while message := self._messages.get_message(timeout=0.05):
            messages.append((message["channel"], message["data"]))
        self.client.flushdb()
        self.client.config_resetstat()
        return keys, messages

    def calls_of(self, *commands: str) -> list[int]:
        """Returns how often the server ran each of some commands."""
        found: Any = self.client.info("commandstats")
        return [found.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in commands]

    def close(self) -> None:
        """Closes the connections."""
        self._messages.close()
        self.client.close()
        self.task.app.close()


@pytest.fixture
def configuration() -> dict[str, Any]:
    """The settings of the app, unless a test has others."""
    return {}


@pytest.fixture
def stored(cluster_server: EmbeddedServer, configuration: dict[str, Any]) -> Iterator[Stored]:
    """An empty result backend."""
    made = Stored(f"{cluster_server.url.rpartition('/')[0]}/5", configuration)
    made.client.flushdb()
    yield made
    made.close()


def hold(*, anew: bool = False) -> None:
    """Confirms a lease that nobody takes away."""


GUARD = Guard(hold)


def write(task: Any, step: Callable[[Guard], object], confirm: Any = hold) -> None:
    """Does a step of reporting as a run does it, that is not patient."""
    writer: Any = StateWriter(task, Held(), patience=0)
    writer.confirm = confirm
    writer.write(step)


def report_by_celery(task: Any, outcomes: Outcomes) -> None:
    """Reports outcomes as Celery does, one by one."""
    for request, value in outcomes:
        if isinstance(value, Exception):
            text = report.traceback_of(value)
            task.backend.mark_as_failure(request.id, value, text, request=request.context)
        else:
            task.backend.mark_as_done(request.id, value, request.context)


def report_one_by_one(task: Any, outcomes: Outcomes) -> None:
    """Reports outcomes as a function does that settles each request by itself."""
    for request, value in outcomes:
        if isinstance(value, Exception):
            report.failure(task, request, value, GUARD)
        else:
            report.success(task, request, value, GUARD, store=True)


def report_together(task: Any, outcomes: Outcomes, confirm: Callable[[], object]) -> None:
    """Reports outcomes as a batch does when its function returns."""
    write(task, partial(report.together, task, outcomes, store=True), confirm)


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda c: next(iter(c), "default"))
def test_what_is_stored_is_what_celery_stores(stored: Stored) -> None:
    """Together and one by one: the same keys, bytes, times to live and messages, in order."""

    def outcomes() -> Outcomes:
        return [
            (stored.request(f"{row}-{column}", headers), value)
            for row, value in enumerate(VALUES)
            for column, headers in enumerate(HEADERS)
        ]

    report_by_celery(stored.task, outcomes())
    expected = stored.take()
    report_one_by_one(stored.task, outcomes())
    assert stored.take() == expected
    told = report.together(stored.task, outcomes(), GUARD, store=True)

    assert stored.take() == expected
    assert [request.id for request in told] == [request.id for request, _ in outcomes()]
    assert len(expected[0]) == len(expected[1]) == len(VALUES) * len(HEADERS)


def test_it_takes_one_round_trip(stored: Stored) -> None:
    """The first run of a call assumes that it has no state; a later one reads it first."""
    outcomes = [(stored.request(str(number), {}), number) for number in range(100)]
    report.together(stored.task, outcomes, GUARD, store=True)
    stored.take()

    report.together(stored.task, outcomes, GUARD, store=True)

    # The script has an MGET of its own.
    assert stored.calls_of("evalsha", "mget", "setex", "publish", "get") == [1, 1, 100, 100, 0]
    for request, _ in outcomes:
        request.attempt = 2
    stored.take()

    report.together(stored.task, outcomes, GUARD, store=True)

    assert stored.calls_of("evalsha", "mget", "setex", "publish", "get") == [1, 2, 100, 100, 0]


def test_a_request_that_settles_itself_takes_one_round_trip(stored: Stored) -> None:
    """At its first run; with `track_started` it has a state already."""
    request = stored.request("a", {})
    report.success(stored.task, request, 7, GUARD, store=True)
    stored.take()

    report.success(stored.task, request, 7, GUARD, store=True)

    assert stored.calls_of("evalsha", "mget") == [1, 1]
    stored.task.track_started = True
    stored.take()

    report.success(stored.task, request, 7, GUARD, store=True)

    assert stored.calls_of("evalsha", "mget") == [1, 2]


def test_a_stored_success_stays(stored: Stored) -> None:
    """As with Celery: a late run overwrites no result; any other state is overwritten."""
    old = [("kept", states.SUCCESS), ("failed", states.FAILURE), ("retried", states.RETRY)]
    for task_id, state in old:
        value = Unusual("old") if state != states.SUCCESS else "old"
        stored.task.backend.store_result(task_id, value, state)
    late = [(stored.request(task_id, {}), "new") for task_id, _ in old]

    report_together(stored.task, late, hold)

    results = [stored.task.AsyncResult(task_id).result for task_id, _ in old]
    assert results == ["old", "new", "new"]


def test_what_cannot_be_stored_is_left_to_be_told_alone(stored: Stored) -> None:
    """The others of its batch are stored."""
    outcomes: Outcomes = [
        (stored.request("good", {}), 1),
        (stored.request("bad", {}), object()),
        (stored.request("too", {}), 2),
    ]

    told = report.together(stored.task, outcomes, GUARD, store=True)

    assert [request.id for request in told] == ["good", "too"]
    assert len(stored.take()[0]) == 2


def test_large_results_go_out_in_parts(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker does not hold a whole batch of them, and no transaction blocks for long."""
    monkeypatch.setattr("redis_batches.runs.states.CHUNK_BYTES", 15_000)
    outcomes = [(stored.request(str(number), {}), "x" * 10_000) for number in range(6)]
    stored.take()

    reporter = held(stored.task, [request for request, _ in outcomes])
    report_all(reporter, Ending(outcomes))

    assert stored.calls_of("evalsha", "setex") == [3, 6]
    assert reporter.batch.undecided == []


def held(task: Any, requests: list[SimpleRequest]) -> Reporter:
    """Returns who settles some requests, under a lease that nobody takes away."""
    reporter = Reporter(task, Held())
    reporter.batch.add(requests)
    return reporter


class Paused:
    """Confirms a lease, is paused, and another run of the batch tells its outcome meanwhile."""

    def __init__(self, stored: Stored, result: Any, state: str) -> None:
        self._stored, self._outcome = stored, (result, state)
        self._times = 0

    def __call__(self, *, anew: bool = False) -> None:
        self._times += 1
        if self._times > 1:
            raise LeaseLost("another worker runs its requests")
        backend = self._stored.task.backend
        backend.store_result("a", *self._outcome)


OTHERS: list[tuple[Any, str]] = [(7, states.SUCCESS), (Unusual("other"), states.FAILURE)]


@pytest.mark.parametrize(("result", "state"), OTHERS, ids=["success", "failure"])
def test_a_run_that_was_paused_while_it_told_changes_nothing(
    stored: Stored, result: Any, state: str
) -> None:
    """Else a caller whose call is done would read that it is to be retried, for ever."""
    task, request = stored.task, stored.request("a", {})
    steps: list[Callable[[Guard], object]] = [
        partial(report.retry, task, request, Retry(exc=raised("late"))),
        partial(report.failure, task, request, raised("late")),
        partial(report.success, task, request, "late", store=True),
        partial(report.started, task, [request]),
        partial(report.together, task, [(request, "late")], store=True),
    ]
    task.track_started = True
    for step in steps:
        with pytest.raises(LeaseLost):
            write(task, step, Paused(stored, result, state))

        told = task.AsyncResult("a")
        assert (told.state, repr(told.result)) == (state, repr(result))
        stored.client.flushdb()


def test_a_run_that_was_paused_fails_no_step_behind_its_call(stored: Stored) -> None:
    """Another run told that the call succeeded, and its next step is on its way."""
    task = stored.task
    request = stored.request("a", {}, {"chain": [task.s(2).set(task_id="b")]})
    with pytest.raises(LeaseLost):
        write(
            task, partial(report.failure, task, request, raised("late")), Paused(stored, *OTHERS[0])
        )

    assert [task.AsyncResult(task_id).state for task_id in "ab"] == ["SUCCESS", "PENDING"]


@pytest.mark.parametrize("half", [False, True], ids=["lost", "half"])
def test_a_reply_that_is_lost_is_no_outcome(cluster_server: EmbeddedServer, half: bool) -> None:
    """What was stored is stored, and who sends it again finds it."""
    proxy = LossyProxy(cluster_server.port)
    stored = Stored(f"redis://127.0.0.1:{proxy.port}/5", {})
    stored.client.flushdb()
    requests = [stored.request(task_id, {}) for task_id in ("warm", "a", "b")]
    reporter = held(stored.task, requests)
    reporter.succeed(requests[0], 6)

    proxy.half, proxy.eat = half, 1
    reporter.succeed(requests[1], 7)
    proxy.eat = 1
    report_all(reporter, Ending([(requests[2], 8)]))

    assert [stored.task.AsyncResult(task_id).result for task_id in "ab"] == [7, 8]
    assert proxy.eaten == 2
    stored.close()
    proxy.close()


@pytest.mark.parametrize("refused", ["-@scripting", "-mget"])
def test_a_server_that_refuses_scripts_is_told_one_by_one(
    stored: Stored, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    """Whether it refuses them, or what they do; the log says what to allow."""
    server = stored.client
    server.acl_setuser("plain", enabled=True, nopass=True, keys="*", channels="*",
                       commands=["+@all", refused], reset=True)  # fmt: skip
    url = stored.task.app.conf.result_backend.replace("redis://", "redis://plain:@")
    plain = Stored(url, {})
    requests = [plain.request(task_id, {}) for task_id in "abc"]
    reporter = held(plain.task, requests)

    reporter.succeed(requests[0], 7)
    report_all(reporter, Ending([(requests[1], 8), (requests[2], 9)]))

    assert [plain.task.AsyncResult(task_id).result for task_id in "abc"] == [7, 8, 9]
    assert caplog.text.count("allow it EVALSHA") == 1
    plain.close()
    server.acl_deluser("plain")


def test_a_server_that_cannot_run_scripts_is_asked_again_later(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator who allows them needs to restart no worker."""
    backend = stored.task.backend
    monkeypatch.setattr(
        "redis_batches.runs.states._script", lambda: GuestScript("return redis.call('NO')")
    )
    request = stored.request("a", {})
    write(stored.task, partial(report.success, stored.task, request, 7, store=True))
    assert (stored.task.AsyncResult("a").result, can_gather(backend)) == (7, False)

    monkeypatch.setattr("redis_batches.runs.states.monotonic", lambda: monotonic() + REFUSAL)

    assert can_gather(backend)


def test_a_state_that_is_never_what_was_read_is_told_later(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that lags must not keep a worker busy for ever."""
    monkeypatch.setattr(
        "redis_batches.runs.states._script", lambda: GuestScript("return {'changed'}")
    )

    request = stored.request("a", {})

    with pytest.raises(OperationalError, match="replica"):
        write(stored.task, partial(report.success, stored.task, request, 7, store=True))


def test_an_earlier_runs_states_are_read_together(stored: Stored) -> None:
    """Only those that are final count as told."""
    for task_id, state in (("done", states.SUCCESS), ("retried", states.RETRY)):
        stored.task.backend.store_result(task_id, None, state)
    stored.client.config_resetstat()
    requests = [stored.request(task_id, {}) for task_id in ("done", "retried", "unknown")]

    found = earlier.settled(stored.task, requests)

    assert [request.id for request, _ in found] == ["done"]
    assert stored.calls_of("mget", "get") == [1, 0]


def test_track_started_is_told_together(stored: Stored) -> None:
    """With the bytes that Celery stores."""
    stored.task.track_started = True
    requests = [stored.request(str(number), HEADERS[2]) for number in range(3)]
    for request in requests:
        meta = {"hostname": "w@here"}
        stored.task.backend.store_result(request.id, meta, states.STARTED, request=request.context)
    expected = stored.take()

    report.started(stored.task, requests, GUARD)

    assert stored.calls_of("evalsha") == [1]
    assert stored.take() == expected


def test_a_backend_of_another_class_is_told_one_by_one(
    stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may store in its own way."""

    class Own(RedisBackend):
        pass

    monkeypatch.setattr(stored.task.backend, "__class__", Own)

    told = report.together(stored.task, [(stored.request("a", {}), 1)], GUARD, store=True)

    assert (told, stored.take()[0]) == ([], {})
