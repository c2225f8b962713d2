"""Stored requests that somebody damaged: each costs itself, and no other."""

from __future__ import annotations

import logging
import os
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from redis_batches import SimpleRequest
from redis_batches.testing.worker import InProcess, in_process
from tests.support import raw

#: CI damages 10,000; `FUZZ=100000 sh run.sh test tests/properties/test_fuzz.py` takes minutes.
REQUESTS = int(os.environ.get("FUZZ", "10000"))
BATCH = 500


def first_argument(requests: list[SimpleRequest]) -> list[Any]:
    """Returns what each request was called with."""
    return [request.args[0] for request in requests]


@pytest.fixture
def here() -> Iterator[InProcess]:
    """A task that returns what it was called with."""
    with in_process(first_argument, BATCH) as made:
        yield made


def damage(chance: random.Random, envelope: bytes) -> tuple[str, bytes]:
    """Returns what was done to an envelope, and the result."""
    kind = chance.choice(["none", "none", "cut", "noise", "flip", "version", "newer", "content"])
    if kind == "cut":
        return kind, envelope[: chance.randrange(len(envelope))]
    if kind == "noise":
        return kind, chance.randbytes(chance.randrange(200))
    if kind == "flip":
        at = chance.randrange(len(envelope))
        return kind, envelope[:at] + chance.randbytes(1) + envelope[at + 1 :]
    if kind == "version":
        return kind, b"x" + envelope[1:]
    if kind == "newer":
        return kind, b"2" + envelope[1:]
    if kind == "content":
        head = chance.choice([b'{"content":["application/x-python-serialize","binary"]}', b"[1]"])
        return kind, b"1" + head + b"\ncos\nsystem\n(S'exit 1'\ntR."
    return kind, envelope


@pytest.mark.timeout(120 + REQUESTS / 100)
def test_a_damaged_request_costs_only_itself(
    here: InProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """The others get their results; it fails with a reason, or waits for a newer worker."""
    caplog.set_level(logging.CRITICAL)
    chance, task = random.Random(7), here.task
    store = task.inspector._store
    items = raw.key(store, "items")
    for first in range(0, REQUESTS, BATCH):
        kinds: dict[str, str] = {}
        for number in range(first, first + BATCH):
            result = task.delay(number)
            value = raw.client(store).hget(items, result.id)
            *fields, envelope = value.split(b":", 3)
            kinds[result.id], damaged = damage(chance, envelope)
            raw.client(store).hset(items, result.id, b":".join((*fields, damaged)))
        here.answer(force=True)

        states = Counter((kind, task.AsyncResult(found).state) for found, kind in kinds.items())
        assert states["none", "SUCCESS"] == list(kinds.values()).count("none")
        assert {state for kind, state in states if kind == "newer"} <= {"PENDING"}
        for kind in ("version", "content", "noise", "cut"):
            assert {state for name, state in states if name == kind} <= {"FAILURE", "PENDING"}

    stats = task.stats()
    assert stats["running"] == 0
    assert stats["acked"] + stats["delayed"] + stats["dead"] == REQUESTS
    assert stats["dead"] > stats["delayed"] > 0
