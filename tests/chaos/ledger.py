"""What producers and tasks write down about each call, so that it outlives every one of them.

Each process appends JSON lines to files of its own. A line is written by one system call and synced
before what it announces is done, so whatever was done is in it, whoever was killed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias
from uuid import uuid4

#: A final state, and with it the result, or the name of the exception's class.
Outcome: TypeAlias = "tuple[str, Any]"

#: Names the folder of all files.
FOLDER_VARIABLE = "CHAOS_FOLDER"


class Log:
    """Lines that this process appends.

    Args:
        kind: What the lines are about: the first part of the file's name.
    """

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._pid = 0
        self._file = -1
        self._lock = Lock()

    def write(self, lines: Iterable[Mapping[str, Any]], *, sync: bool = True) -> None:
        """Appends lines; with `sync` they are on the disk when it returns."""
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        with self._lock:
            if self._pid != os.getpid():
                name = f"{self._kind}-{os.getpid()}-{uuid4().hex[:8]}.jsonl"
                path = Path(os.environ[FOLDER_VARIABLE]) / name
                self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                self._pid = os.getpid()
            os.write(self._file, text)
        if sync:
            os.fsync(self._file)


def read_lines(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yields the lines of a kind; one that its process did not finish was never announced."""
    for path in sorted(folder.glob(f"{kind}-*.jsonl")):
        *lines, _ = path.read_text().split("\n")
        yield from map(json.loads, lines)


@dataclass
class Call:
    """One attempt of a producer to call a task, or a call that a canvas leads to.

    Attributes:
        task: Short name of the task.
        expect: How it may end, unless it is revoked; nothing if no caller is told.
        flow: The canvas that it is in, or itself.
        sent: Whether the producer sends it, and not a worker that runs what leads to it.
        at: Unix time before the call.
        done_at: Unix time after the call, or None if its producer was killed.
        task_id: The id under which it was accepted, or None.
        error: What the call raised, or "": then it was accepted, or its producer was killed.
        revokes: When somebody began to revoke it and when he was done, or None: Unix times.
    """

    task: str
    expect: list[Outcome] = field(default_factory=list)
    flow: str = ""
    sent: bool = True
    at: float = 0.0
    done_at: float | None = None
    task_id: str | None = None
    error: str = ""
    revokes: list[tuple[float, float | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Wait:
    """What a caller who waited was told.

    Attributes:
        call: The call's id.
        seconds: How long it took from the call on.
        outcome: What it got, or None: nothing in time.
    """

    call: str
    seconds: float
    outcome: Outcome | None


@dataclass
class Run:
    """One execution of a batch.

    Attributes:
        task: Short name of the task.
        token: The lease's.
        fence: The lease's; larger at each run.
        pid: The pool process.
        at: Unix time at which the function began.
        calls: Ids of the calls, oldest first.
        attempts: The attempt of each.
        retries: How often each was retried before.
        waited: Seconds that each had waited.
        ended: Whether the function ended by itself.
        ended_at: Unix time at which it did, or 0.
    """

    task: str
    token: str
    fence: int
    pid: int
    at: float
    calls: list[str] = field(default_factory=list)
    attempts: list[int] = field(default_factory=list)
    retries: list[int] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    ended: bool = False
    ended_at: float = 0.0


def read_calls(folder: Path) -> dict[str, Call]:
    """Returns every attempted call by its id."""
    calls: dict[str, Call] = {}
    for line in read_lines(folder, "calls"):
        key = line.pop("call")
        if "task" in line:
            expect = [(state, value) for state, value in line.pop("expect")]
            calls[key] = Call(**{"flow": key, **line, "expect": expect})
        else:
            calls[key] = replace(calls[key], **line)
    for line in read_lines(folder, "revokes"):
        calls[line["call"]].revokes.append((line["at"], line["done_at"]))
    return calls


def read_waits(folder: Path) -> list[Wait]:
    """Returns what everybody who waited was told."""
    return [
        Wait(line["call"], line["seconds"], tuple(line["outcome"]) if line["outcome"] else None)
        for line in read_lines(folder, "waits")
    ]


def read_notes(folder: Path) -> list[str]:
    """Returns the ids of the calls of the task that is no batch task, one for each run of them."""
    return [line["call"] for line in read_lines(folder, "notes")]


def read_runs(folder: Path) -> list[Run]:
    """Returns every execution of a batch, the first one first."""
    runs: dict[tuple[str, int], Run] = {}
    for line in read_lines(folder, "runs"):
        key = line["token"], line["pid"]
        if "calls" in line:
            runs[key] = Run(**line)
        else:
            runs[key].ended, runs[key].ended_at = True, line["ended_at"]
    return sorted(runs.values(), key=lambda run: run.at)


class Recorded:
    """Records one execution of a batch: a line before the function's body, and one after it."""

    _log = Log("runs")

    def __init__(self, requests: list[Any]) -> None:
        batch = requests[0].batch
        self._who = {"token": batch.token, "pid": os.getpid()}
        now = time.time()
        self._what = {
            "task": requests[0].settler.task.name.rpartition(".")[2],
            "fence": batch.fence,
            "at": now,
            "calls": [request.kwargs.get("call") or request.args[0] for request in requests],
            "attempts": [request.attempt for request in requests],
            "retries": [request.retries for request in requests],
            "waited": [now - request.enqueued_at.timestamp() for request in requests],
        }

    def __enter__(self) -> None:
        self._log.write([{**self._who, **self._what}])

    def __exit__(self, *exc_info: object) -> None:
        self._log.write([{**self._who, "ended_at": time.time()}])
