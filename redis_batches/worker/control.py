"""`app.control.revoke` and `revoke_by_stamped_headers` in a worker that serves batch tasks.

Celery's own commands note ids in the main process, which no batch sees, and store REVOKED for what
waits. So they get only the ids that no batch task has; the others are revoked in Redis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from celery import bootsteps
from celery.utils.functional import maybe_list
from celery.utils.log import get_logger
from celery.worker import state as worker_state
from celery.worker.control import Panel

from redis_batches.app.state import runtime_of
from redis_batches.core.errors import BatchesError
from redis_batches.core.outcomes import Place
from redis_batches.operate.revoke import revoke, revoke_stamped
from redis_batches.worker.served import batch_tasks

logger = get_logger(__name__)

#: Seconds until a command is tried again that Redis could not be reached for.
RETRY_DELAY = 1.0
_MARK = "_redis_batches_command"


class RevokeStep(bootsteps.Step):
    """Puts the commands of this module before Celery's, in a worker only."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        for name, make in _COMMANDS.items():
            original: Any = Panel.data[name]
            if not hasattr(original, _MARK):
                command = make(original)
                setattr(command, _MARK, True)
                Panel.data[name] = command


def install(app: Any) -> None:
    """Adds the commands to the workers of an app."""
    app.steps["consumer"].add(RevokeStep)


def _revoke(original: Callable[..., Any]) -> Callable[..., Any]:
    def command(
        state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **kwargs: Any
    ) -> Any:
        ids = set(maybe_list(task_id) or [])
        try:
            places = _cancel(state.app, ids)
        except BatchesError as exc:
            # Celery would store REVOKED for what may run: it has its turn when Redis is back.
            if runtime_of(state.app).quiet.may_say("revoke"):
                logger.warning("cannot revoke yet, it is tried again: %s", exc)
            worker_state.revoked.update(ids)
            options = {"terminate": terminate, "signal": signal, **kwargs}
            state.consumer.timer.call_after(RETRY_DELAY, command, (state, task_id), options)
            return {"ok": f"tasks {ids} flagged as revoked; Redis cannot be reached now"}
        if not places:
            return original(state, task_id, terminate=terminate, signal=signal, **kwargs)
        worker_state.revoked.update(list(places))
        replies = [_describe(places)]
        if rest := ids - places.keys():
            reply = original(state, list(rest), terminate=terminate, signal=signal, **kwargs)
            replies.append(str(reply.get("ok", reply)))
        return {"ok": "; ".join(replies)}

    return command


def _terminate(original: Callable[..., Any]) -> Callable[..., Any]:
    def command(state: Any, signal: Any, task_id: Any, **kwargs: Any) -> Any:
        return Panel.data["revoke"](state, task_id, terminate=True, signal=signal, **kwargs)

    return command


def _revoke_by_stamps(original: Callable[..., Any]) -> Callable[..., Any]:
    def command(state: Any, headers: Any, *args: Any, **kwargs: Any) -> Any:
        reply = original(state, headers, *args, **kwargs)
        pairs = (
            headers.items() if isinstance(headers, dict) else (h.split("=")[:2] for h in headers)
        )
        _search(state, dict(pairs))
        return reply

    return command


_COMMANDS = {
    "revoke": _revoke,
    "terminate": _terminate,
    "revoke_by_stamped_headers": _revoke_by_stamps,
}


def _cancel(app: Any, ids: Iterable[str]) -> dict[str, Place]:
    """Revokes what any batch task has of some ids; returns where those were."""
    found: dict[str, Place] = {}
    for task in batch_tasks(app):
        places = revoke(task, ids, runtime_of(app).sweeping_store(task.name))
        found.update((name, at) for name, at in places.items() if at is not Place.GONE)
    return found


def _describe(places: Mapping[str, Place]) -> str:
    running = {task_id for task_id, place in places.items() if place is Place.IN_FLIGHT}
    text = f"tasks {set(places)} flagged as revoked"
    if not running:
        return text
    return f"{text}, of which {running} end with the batch that runs them"


def _search(state: Any, stamps: Mapping[str, Any]) -> None:
    """Searches in steps, between which the worker's event loop goes on with its work."""
    app, timer = state.app, state.consumer.timer

    def steps() -> Iterator[Any]:
        for task in batch_tasks(app):
            yield from revoke_stamped(task, stamps, runtime_of(app).sweeping_store(task.name))

    def go_on(search: Iterator[Any]) -> None:
        try:
            next(search)
        except StopIteration:
            return
        except BatchesError as exc:
            if runtime_of(app).quiet.may_say("revoke by stamps"):
                logger.warning("cannot revoke by stamps yet, it is tried again: %s", exc)
            timer.call_after(RETRY_DELAY, go_on, (steps(),))
        else:
            timer.call_after(0.0, go_on, (search,))

    go_on(steps())
