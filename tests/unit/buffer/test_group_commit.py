"""Group commit: who shares a script call, who is told what, and what an interruption leaves."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import fakeredis
import pytest
from celery.exceptions import SoftTimeLimitExceeded

from redis_batches.buffer.group_commit import Committed, Committer, PushKey
from redis_batches.buffer.store import Store
from redis_batches.core.age import Age
from redis_batches.core.errors import StoreError
from redis_batches.core.requests import Group, Outgoing, Pushed, Status
from redis_batches.core.settings import Settings
from redis_batches.core.triggers import Trigger
from tests.support import raw
from tests.support.waiting import wait_until

KEY = PushKey(Group('{"queue":"a"}'), Trigger(1000, 60_000), None)
OTHER = PushKey(Group('{"queue":"b"}'), Trigger(1000, 60_000), None)


class Line:
    """A committer whose first script call is out until a test lets it through."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sent: list[list[str]] = []
        self.ages: list[int] = []
        self.through = threading.Event()
        #: What to do instead of the first script call.
        self.first: Callable[[], None] = lambda: None
        self.committer = Committer(self._push)
        self.told: dict[str, Committed | BaseException] = {}
        self.threads: list[threading.Thread] = []

    def _push(
        self, group: Group, trigger: Trigger, requests: Sequence[Outgoing], *, age: Age
    ) -> Pushed:
        self.sent.append([request.id for request in requests])
        self.ages.append(age())
        if len(self.sent) == 1:
            assert self.through.wait(30)
            self.first()
        return self.store.push(group, trigger, requests)

    def call(self, *ids: str, key: PushKey = KEY, size: int = 10) -> None:
        """Commits each from a thread of its own, in order."""
        for task_id in ids:
            awaited = self._arrived() + 1
            thread = threading.Thread(target=self._commit, args=(task_id, key, size), daemon=True)
            self.threads.append(thread)
            thread.start()
            wait_until(partial(self._has_arrived, awaited), description=f"{task_id} arrived")

    def _arrived(self) -> int:
        return len(self.sent) + len(self.committer._waiting)

    def _has_arrived(self, count: int) -> bool:
        return self._arrived() >= count

    def _commit(self, task_id: str, key: PushKey, size: int) -> None:
        try:
            request = Outgoing(task_id, "", None, b"x" * size)
            self.told[task_id] = self.committer.commit(key, request)
        except BaseException as exc:
            self.told[task_id] = exc

    def finish(self) -> None:
        """Lets the first script call through, and waits for all callers."""
        self.through.set()
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive(), "a caller is stranded"
        assert self.committer._leader is None
        assert not self.committer._waiting
        assert not self.committer._inside

    @property
    def stored(self) -> set[str]:
        """The ids in Redis."""
        return {key.decode() for key in raw.client(self.store).hkeys(raw.key(self.store, "items"))}


@pytest.fixture
def line() -> Line:
    """A committer on a fake Redis."""
    return Line(Store(fakeredis.FakeRedis(), Settings(max_pending=600), "shop.click"))


def test_calls_that_come_meanwhile_share_the_next_script_call(line: Line) -> None:
    """In their order; the one who led rings."""
    line.call("a", "b", "c", "d")
    line.finish()

    assert line.sent == [["a"], ["b", "c", "d"]]
    assert line.stored == {"a", "b", "c", "d"}
    told: Any = line.told
    assert {told[i].status for i in "abcd"} == {Status.NEW}
    assert [told[i].bells is not None for i in "abcd"] == [True, True, False, False]


def test_a_lone_caller_goes_straight_out(line: Line) -> None:
    """It waits for nobody."""
    line.through.set()
    for task_id in "abc":
        assert line.committer.commit(KEY, Outgoing(task_id, "", None, b"")).bells is not None
    assert line.sent == [["a"], ["b"], ["c"]]


def test_a_caller_gives_up_when_its_own_time_is_over(line: Line) -> None:
    """The leader may be out for longer, for whatever reason."""
    line.committer._deadline = 0.1
    line.call("a", "b")
    wait_until(lambda: "b" in line.told, description="the caller gives up")

    assert isinstance(line.told["b"], StoreError)
    line.finish()
    assert line.sent == [["a"]]


def test_a_leader_with_little_time_does_not_fail_for_others(line: Line) -> None:
    """Who came much later has much more time left, and leads by itself."""
    line.committer._deadline = 0.5
    line.call("a", "b")
    line.committer._deadline = 60
    line.call("c")
    line.finish()

    assert line.sent == [["a"], ["b"], ["c"]]


def test_a_script_call_is_bounded_and_for_one_group(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By requests and by bytes; a large one goes alone."""
    monkeypatch.setattr("redis_batches.buffer.group_commit.PUSH_CHUNK", 3)
    monkeypatch.setattr("redis_batches.buffer.group_commit.PUSH_BYTES", 100)
    line.call("a", "b", "c")
    line.call("x", key=OTHER)
    line.call("d", "e")
    line.call("large", size=1000)
    line.call("y", key=OTHER)
    line.finish()

    assert line.sent == [["a"], ["b", "c", "d"], ["x", "y"], ["e"], ["large"]]
    assert len(line.stored) == 8


def test_each_caller_gets_its_own_status(line: Line) -> None:
    """One that is refused fails nobody else."""
    for number in range(597):
        line.store.push(*KEY[:2], [Outgoing(f"old{number}", "", None, b"x")])
    line.call("a", "b", "c", "d")
    line.finish()

    told: Any = line.told
    assert [told[i].status for i in "abcd"] == [Status.NEW] * 3 + [Status.FULL]


def test_an_error_of_redis_goes_to_every_caller_as_its_own_object(line: Line) -> None:
    """And only to those of that script call."""
    line.call("a", "b", "c")

    def fail(*_: Any) -> Any:
        raise StoreError("Redis is gone")

    line.store.push = fail  # type: ignore[method-assign]
    line.finish()

    errors = [line.told[i] for i in "abc"]
    assert all(type(e) is StoreError and "Redis is gone" in str(e) for e in errors)
    assert len({id(error) for error in errors}) == 3


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SoftTimeLimitExceeded, TypeError])
def test_an_interrupted_leader_strands_nobody(line: Line, kind: type[BaseException]) -> None:
    """It alone fails, and those whom it led are stored."""

    def interrupted() -> None:
        line.call("d")
        raise kind

    line.first = interrupted
    line.call("a", "b", "c")
    # The second leader is interrupted, too, after it took the others.
    push, calls = line.store.push, []

    def second(*args: Any) -> Pushed:
        calls.append(args)
        if len(calls) == 1:
            raise kind
        return push(*args)

    line.store.push = second  # type: ignore[method-assign]
    line.finish()

    assert type(line.told["a"]) is type(line.told["b"]) is kind
    told: Any = line.told
    assert told["c"].status is told["d"].status is Status.NEW
    assert line.stored == {"c", "d"}


def test_a_leader_that_vanishes_is_replaced(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a signal broke into its leaving."""
    monkeypatch.setattr("redis_batches.buffer.group_commit.LOOK_AGAIN", 0.05)
    leave, left = line.committer._leave, []

    def broken(ticket: Any) -> None:
        left.append(ticket)
        if len(left) == 1:
            raise KeyboardInterrupt
        leave(ticket)

    monkeypatch.setattr(line.committer, "_leave", broken)
    line.call("a", "b", "c")
    line.finish()

    assert isinstance(line.told["a"], KeyboardInterrupt)
    assert line.stored == {"a", "b", "c"}


def test_an_interrupted_follower_is_not_sent(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller was told that it failed."""
    monkeypatch.setattr("redis_batches.buffer.group_commit.LOOK_AGAIN", 0.05)
    line.call("a", "b", "c", "d")
    ident = ctypes.c_ulong(line.threads[2].ident or 0)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(SoftTimeLimitExceeded))
    wait_until(lambda: "c" in line.told, description="the follower left")
    line.finish()

    assert isinstance(line.told["c"], SoftTimeLimitExceeded)
    assert line.sent == [["a"], ["b", "d"]]
    assert line.stored == {"a", "b", "d"}


def test_a_call_that_interrupts_a_call_of_the_same_thread_goes_alone(line: Line) -> None:
    """A signal handler or a finalizer could never be led by the frame below it."""
    line.first = lambda: line._commit("handler", KEY, 10)
    line.call("a")
    line.call("b")
    line.finish()

    assert line.sent == [["a"], ["handler"], ["b"]]
    assert line.stored == {"a", "b", "handler"}


def test_what_is_sent_again_tells_its_age(line: Line) -> None:
    """By itself: those that were not sent before are not refused for it."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    line.first = interrupt
    line.call("a")
    line.call("b", "c")
    line.committer._sent.append(line.committer._waiting.popleft())
    line.committer._sent[-1].age = age = Age(1.0)
    age()
    line.finish()

    ages = {tuple(ids): told for ids, told in zip(line.sent, line.ages, strict=True)}
    assert ages[("a",)] == 0
    assert ages[("b",)] > 1000
    assert ages[("c",)] == 0
