"""How much one script call takes, so that none blocks the server for long."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

_T = TypeVar("_T")

#: Requests of one push, and the bytes of their envelopes unless a single one is larger. Also the
#: ids of whatever has no limit of its own.
PUSH_CHUNK, PUSH_BYTES = 500, 8_000_000
#: Outcomes of one release.
RELEASE_CHUNK = 250
#: Ids of one ack.
ACK_CHUNK = 1000
#: Requests of one step of a claim, and their bytes.
CLAIM_STEP, CLAIM_BYTES = 1000, 2_000_000
#: Requests of one step that takes a batch back.
RECLAIM_STEP = 500
#: Ids of one cancel.
CANCEL_CHUNK = 100


def chunked(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yields lists of at most `size` values."""
    iterator = iter(values)
    while chunk := list(islice(iterator, size)):
        yield chunk
