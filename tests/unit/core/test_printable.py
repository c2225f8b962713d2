"""Names that others chose, as a log shows them."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_batches.core.printable import MOST, printable
from redis_batches.runs.request import SimpleRequest
from redis_batches.testing.worker import in_process


@given(st.one_of(st.text(max_size=600), st.integers(), st.lists(st.text())))
def test_any_name_is_one_short_line(value: object) -> None:
    """That can be printed, and is longer than the name only where that has to be escaped."""
    shown = printable(value)

    assert shown.isprintable()
    assert len(shown) <= 10 * MOST + 3
    assert printable(shown[:MOST]) == shown[:MOST]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("shop.click", "shop.click"),
        ("größe", "größe"),
        ("a\nb\r\x1b[31m\u2028", r"a\nb\r\x1b[31m\u2028"),
        ("\ud800", r"\ud800"),
        ("x" * 300, "x" * 256 + "..."),
        (5, "5"),
    ],
)
def test_what_is_no_line_is_escaped(value: object, shown: str) -> None:
    """And what is too long is cut; a good name stays as it is."""
    assert printable(value) == shown


def test_a_shadow_forges_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Wherever a request is told of by its name."""
    seen: list[str] = []

    def function(requests: list[SimpleRequest]) -> None:
        seen.append(requests[0].name)
        requests[0].succeed()
        requests[0].succeed()

    with in_process(function, 1) as here, caplog.at_level(logging.INFO, "redis_batches"):
        here.task.apply_async(shadow="forged\nline")
        here.answer()

    assert seen == [r"forged\nline"]
    assert any(r"forged\nline" in record.getMessage() for record in caplog.records)
    assert not any("\n" in record.getMessage() for record in caplog.records)
