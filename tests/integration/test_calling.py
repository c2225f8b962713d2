"""What a caller may say of a call, and when it then runs, on a real worker."""

from __future__ import annotations

import importlib
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import states
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult

from tests.support.ledger import ledger, noted
from tests.support.processes import Cluster
from tests.support.waiting import wait_until

APP = "tests.integration.apps.calling"


@pytest.fixture(scope="module")
def tasks(lasting_cluster: Cluster) -> Any:
    """The tasks, with one worker that consumes several queues."""
    module = importlib.import_module(APP)
    lasting_cluster.worker("-Q", "celery,special,by-exchange", C_FORCE_ROOT="1")
    return module


def run_of(result: AsyncResult[Any]) -> dict[str, Any]:
    """Returns the run of the batch that a call was in."""
    return wait_until(
        lambda: next((run for run in ledger() if result.id in run["ids"]), None),
        description=f"a run of {result.id}",
    )


OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "delay": ({}, {"name": f"{APP}.tell", "args": "(1,)", "mine": None}),
    "shadow": ({"shadow": "nick"}, {"name": "nick", "shadow": "nick"}),
    "headers": ({"headers": {"mine": {"a": [1]}}}, {"mine": {"a": [1]}}),
    "serializer": ({"serializer": "pickle", "kwargs": {"s": {1, 2}}}, {"kwargs": "{'s': {1, 2}}"}),
    "compression": ({"compression": "zlib", "kwargs": {"k": "x" * 99}}, {"args": "(1,)"}),
    "stamps": ({"stamped_headers": ["trace"], "trace": "x"}, {"stamps": {"trace": "x"}}),
    "reply_to": ({"reply_to": "mine"}, {"reply_to": "mine"}),
    "retry": ({"retry": False, "retry_policy": {"max_retries": 1}}, {"args": "(1,)"}),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_reaches_the_batch_function(tasks: Any, name: str) -> None:
    """And the caller gets its result."""
    options, expected = OPTIONS[name]

    found = tasks.tell.apply_async((1,), **options).get(timeout=20)

    assert {name: found[name] for name in expected} == expected


def test_calls_with_another_route_wait_apart(tasks: Any) -> None:
    """`queue`, `exchange` and `routing_key` choose the worker, as the doorbell goes there."""
    routes = [{}, {"queue": "special"}, {"exchange": "by-exchange", "routing_key": "by-exchange"}]
    results = [tasks.tell.apply_async((1,), priority=3, **route) for route in routes * 3]

    found = [result.get(timeout=20)["delivery_info"] for result in results]
    keys = [info["routing_key"] for info in found]
    assert keys == ["celery", "special", "by-exchange"] * 3
    assert {info["priority"] for info in found} == {3}
    routed = {(run_of(result)["token"], key) for result, key in zip(results, keys, strict=True)}
    assert len({token for token, _ in routed}) == len(routed)


def test_ignore_result_of_a_call_overrides_the_tasks(tasks: Any) -> None:
    """Both ways."""
    ignored = tasks.tell.apply_async((1,), ignore_result=True, link=tasks.linked.si("done"))
    wanted = tasks.silent.apply_async((2,), ignore_result=False)
    default = tasks.silent.apply_async((3,), link=tasks.linked.s())

    assert wanted.get(timeout=20) == 2
    wait_until(lambda: {"done", 3} <= set(noted("linked")), description="both ran")
    assert {tasks.app.AsyncResult(r.id).state for r in (ignored, default)} == {states.PENDING}


@pytest.mark.parametrize("add_to_parent", [True, False])
def test_a_call_becomes_a_child_of_the_task_that_makes_it(tasks: Any, add_to_parent: bool) -> None:
    """Unless it says `add_to_parent=False`."""
    parent = tasks.calls.delay(add_to_parent)

    child = parent.get(timeout=20)
    assert [result.id for result in parent.children] == [child] * add_to_parent


def test_a_plain_task_may_be_replaced_by_a_batch_step(tasks: Any) -> None:
    """`self.replace(batch.s())`."""
    assert tasks.replaced.delay().get(timeout=20) == 7


def test_a_task_id_is_the_requests(tasks: Any) -> None:
    """And its result's."""
    result = tasks.tell.apply_async((1,), task_id="my:own.id-1")

    assert result.get(timeout=20)["name"] == tasks.tell.name
    assert run_of(result)["ids"] == ["my:own.id-1"]


# -- When


def in_seconds(seconds: float) -> datetime:
    """Returns a time in the future."""
    return datetime.now(timezone.utc) + timedelta(seconds=seconds)


@pytest.mark.parametrize("kind", ["countdown", "aware", "other zone", "naive", "text"])
def test_a_call_waits_for_its_time(tasks: Any, kind: str) -> None:
    """An eta without a zone is UTC, whatever the app's time zone is: so Celery reads it."""
    eta = in_seconds(1.5)
    options: dict[str, Any] = {
        "countdown": {"countdown": 1.5},
        "aware": {"eta": eta},
        "other zone": {"eta": eta.astimezone(timezone(timedelta(hours=-7)))},
        "naive": {"eta": eta.replace(tzinfo=None)},
        "text": {"eta": eta.isoformat()},
    }[kind]

    result = tasks.tell.apply_async((1,), **options)

    ran = run_of(result)["at"]
    # No zone is further away than 14 hours, and none that is read wrongly is within half of one.
    assert eta.timestamp() - 0.1 <= ran < eta.timestamp() + 600


def test_delayed_calls_join_in_the_order_of_their_times(tasks: Any) -> None:
    """They make full batches as others do, and nobody waits for them."""
    etas = [in_seconds(2 + number / 100) for number in range(6)]
    order = [3, 0, 5, 1, 4, 2]
    results = {number: tasks.tell.apply_async((number,), eta=etas[number]) for number in order}
    prompt = [tasks.tell.apply_async((9,)) for _ in range(3)]

    for result in prompt:
        result.get(timeout=20)
    assert max(run_of(result)["at"] for result in prompt) < etas[0].timestamp()
    runs = [run_of(results[number]) for number in range(6)]
    batches = {run["token"]: run["args"] for run in runs}.values()
    assert [args[0] for batch in batches for args in batch] == list(range(6))


@pytest.mark.parametrize("kind", ["seconds", "datetime", "past"])
def test_an_expired_call_is_revoked(tasks: Any, kind: str) -> None:
    """It expires while it waits; those beside it run."""
    options: dict[str, Any] = {
        "seconds": {"expires": 0.5, "countdown": 1},
        "datetime": {"expires": in_seconds(0.5), "countdown": 1},
        "past": {"expires": -1},
    }[kind]
    gone = tasks.tell.apply_async((1,), **options)
    beside = tasks.tell.apply_async((2,), expires=60, countdown=options.get("countdown", 0))

    with pytest.raises(TaskRevokedError):
        gone.get(timeout=20)
    assert gone.state == states.REVOKED
    assert beside.get(timeout=20)["args"] == "(2,)"
    assert all(gone.id not in run["ids"] for run in ledger())
