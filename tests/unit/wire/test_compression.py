"""Compressed calls: what a worker will hold is what counts, and no more is ever decompressed."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from kombu.compression import compress, encoders, register

from redis_batches.core.errors import PayloadTooLarge
from redis_batches.wire import compression
from redis_batches.wire.compression import inflate
from redis_batches.wire.envelope import (
    VERSION,
    CorruptEnvelope,
    Envelope,
    decode,
    encode,
    held_size,
)

METHODS = [method for method in encoders() if "brotli" not in method]
LARGE = Envelope({}, (("x" * 1_000_000,), {}, None))


def test_the_methods_that_python_has_are_stopped_on_the_way() -> None:
    """Each of them that kombu knows."""
    assert len(compression._STEPS) >= len(METHODS) >= 3


@pytest.mark.parametrize("method", METHODS)
def test_a_call_comes_back(method: str) -> None:
    """Whatever it was compressed with."""
    data = encode(LARGE, "json", method)

    assert len(data) < 10_000
    assert decode(data, None).body[0] == ["x" * 1_000_000]


@pytest.mark.parametrize("method", METHODS)
def test_a_limit_is_of_what_a_worker_will_hold(method: str) -> None:
    """Not of what is stored."""
    data = encode(LARGE, "json", method)
    size = held_size(data)

    assert size is not None
    assert size > 1_000_000
    encode(LARGE, "json", method, size)
    with pytest.raises(PayloadTooLarge):
        encode(LARGE, "json", method, size - 1)


def test_what_is_not_compressed_is_as_large_as_it_is() -> None:
    """Nobody has to say it twice."""
    assert held_size(encode(LARGE, "json")) is None
    assert held_size(encode(Envelope({"a": 1}), "json")) is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("told", [0, 10, 99_999_999])
def test_a_bomb_is_a_damaged_request(method: str, told: int) -> None:
    """It is never unpacked, whatever its head says of it."""
    payload, kind = compress(b"0" * 100_000_000, method)
    head = json.dumps([{}, {"compressed": [kind, told]}]).encode()
    tracemalloc.start()
    with pytest.raises(CorruptEnvelope):
        decode(VERSION + head + b"\n" + payload, None, 1_000_000)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert most < 10_000_000


@pytest.mark.parametrize("told", [1, 9, 11])
def test_another_size_than_was_told_is_an_error(told: int) -> None:
    """Neither more nor less."""
    data, kind = compress(b"0" * 10, "zlib")

    with pytest.raises(ValueError, match="compressed"):
        inflate(data, kind, told)


def test_a_method_of_the_programs_own_is_used_as_it_is() -> None:
    """Its result has to have the size that was told."""
    register(lambda data: data[::-1], lambda data: data[::-1], "application/x-odd", ["odd"])

    assert decode(encode(LARGE, "json", "odd"), None).body[0] == ["x" * 1_000_000]
