"""Which calls have a stamp, whatever their senders wrote there."""

from __future__ import annotations

from typing import Any

import pytest

from redis_batches.wire.envelope import Envelope, encode
from redis_batches.wire.stamps import has_stamp


@pytest.mark.parametrize(
    ("headers", "has"),
    [
        ({"stamped_headers": ["tenant"], "stamps": {"tenant": "a"}}, True),
        ({"stamped_headers": ["tenant"], "stamps": {"tenant": ["b", "a"]}}, True),
        ({"stamped_headers": ["tenant"], "stamps": {"tenant": "b"}}, False),
        ({"stamped_headers": ["tenant"], "stamps": 5}, False),
        ({"stamped_headers": 5, "stamps": {"tenant": "a"}}, False),
        ({"stamped_headers": [5, {}, "tenant"], "stamps": {"tenant": {"a": 1}}}, False),
        ({"stamps": {"tenant": "a"}}, False),
        ({}, False),
    ],
)
def test_odd_stamps_are_none(headers: dict[str, Any], has: bool) -> None:
    """Nor do they stop the search for those that are some."""
    assert has_stamp(encode(Envelope(headers), "json"), {"tenant": ["a"]}) is has
