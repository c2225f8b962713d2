"""Every bad option is refused, with its name, its value and what is allowed."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_batches.core.errors import BatchesError, InvalidTaskId, OptionError
from redis_batches.core.settings import (
    HEARTBEATS_PER_LEASE,
    Settings,
    check_name,
    check_task_id,
    make_trigger,
)
from redis_batches.core.triggers import Trigger

WEEK = 7 * 24 * 3600
NO_NUMBERS = [None, True, "1", b"1", [], {}, Decimal(1), 1j]
NO_SECONDS = [math.nan, math.inf, -math.inf, -1, -0.001, 10**400]


# -- flush_every and flush_interval


@pytest.mark.parametrize("value", [0, -1, 10_001, 10**400, 1.0, math.nan, *NO_NUMBERS])
def test_flush_every_is_an_int_from_1_to_10000(value: object) -> None:
    """A bool is none."""
    allowed = "^flush_every is .*, but must be an int from 1 to 10,000"
    with pytest.raises(OptionError, match=allowed):
        make_trigger(value, 1)


@pytest.mark.parametrize("value", [WEEK + 0.001, *NO_SECONDS, *NO_NUMBERS])
def test_flush_interval_is_a_number_from_0_to_7_days(value: object) -> None:
    """Nothing else is one."""
    allowed = "^flush_interval is .*, but must be a number of seconds, 0 to 604,800"
    with pytest.raises(OptionError, match=allowed):
        make_trigger(10, value)


@pytest.mark.parametrize(
    ("seconds", "interval_ms"),
    [(0, 0), (0.0, 0), (0.019, 0), (0.02, 20), (0.05, 50), (1, 1000), (WEEK, WEEK * 1000)],
)
def test_a_flush_interval_is_kept_in_milliseconds(seconds: float, interval_ms: int) -> None:
    """Below 20 of them whatever waits is due at once."""
    assert make_trigger(10, seconds) == Trigger(10, interval_ms)


@pytest.mark.parametrize("flush_every", [1, 10_000])
def test_the_bounds_of_flush_every_are_allowed(flush_every: int) -> None:
    """Both."""
    assert make_trigger(flush_every, 1).flush_every == flush_every


def test_a_value_that_looks_like_a_good_one_is_refused_after_it() -> None:
    """True == 1, and 1.0 == 1."""
    assert make_trigger(1, 1)
    for value in (True, 1.0):
        with pytest.raises(OptionError):
            make_trigger(value, 1)
    with pytest.raises(OptionError):
        make_trigger(1, True)


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()))
def test_any_value_is_allowed_or_an_option_error(value: object) -> None:
    """No other error leaves."""
    for arguments in ((value, 1), (1, value)):
        with suppress(OptionError):
            assert 1 <= make_trigger(*arguments).flush_every <= 10_000


# -- Names and ids


@pytest.mark.parametrize("name", ["", "a\nb", "\x00", "\x7f", "\x85", "\u2028", "\ud800", None, 7])
def test_a_name_has_no_control_characters(name: object) -> None:
    """And is not empty."""
    allowed = "^the task's name is .*, but must be a text that is not empty and has no control"
    with pytest.raises(OptionError, match=allowed):
        check_name("the task's name", name)


@pytest.mark.parametrize("name", ["shop.click", "a b", "日本", "{x}", "a/b"])
def test_any_other_name_is_allowed(name: str) -> None:
    """It is encoded where it becomes a key."""
    assert check_name("name", name) == name


@pytest.mark.parametrize("task_id", ["", "a b", "x" * 129, "ü", "a\n", "a/b", "{a}", None, 7, b"a"])
def test_a_task_id_is_refused(task_id: object) -> None:
    """If it could not stand in an entry of a list."""
    with pytest.raises(InvalidTaskId, match=re.escape(repr(task_id))) as caught:
        check_task_id(task_id)
    assert "1 to 128 characters of A-Z a-z 0-9 _ . : - are allowed" in str(caught.value)


@pytest.mark.parametrize(
    "task_id", ["a", "x" * 128, "A-z_0.9:", "550e8400-e29b-41d4-a716-446655440000"]
)
def test_a_task_id_is_allowed(task_id: str) -> None:
    """Celery's own, and whatever else stays in line."""
    assert check_task_id(task_id) == task_id


# -- Settings

SECONDS = ["lease", "sweep_interval", "timeout"]
COUNTS = ["max_payload", "max_pending", "max_dead", "flush_bytes", "retries"]


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0, 24 * 3600 + 1, *NO_SECONDS, *NO_NUMBERS])
def test_a_setting_in_seconds_is_refused(name: str, value: Any) -> None:
    """Zero, too: nothing can take no time."""
    allowed = f"^redis_batches_{name} is .*, but must be a number of seconds, above 0 to 86,400"
    with pytest.raises(OptionError, match=allowed):
        Settings(**{name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", [-1, 1.0, math.inf, *NO_NUMBERS])
def test_a_setting_that_counts_is_refused(name: str, value: Any) -> None:
    """It is an int that is not negative."""
    allowed = f"^redis_batches_{name} is .*, but must be an int that is not negative"
    with pytest.raises(OptionError, match=allowed):
        Settings(**{name: value})


def test_a_lease_outlives_three_heartbeats() -> None:
    """A shorter one is refused."""
    shortest = HEARTBEATS_PER_LEASE * 0.1
    assert Settings(lease=shortest)
    with pytest.raises(OptionError, match=r"^redis_batches_lease is 0\.29, .*3 heartbeats"):
        Settings(lease=0.29)


@pytest.mark.parametrize("namespace", ["", "a\n", 7])
def test_a_namespace_is_refused(namespace: Any) -> None:
    """As any name."""
    with pytest.raises(OptionError, match=r"^redis_batches_namespace is "):
        Settings(namespace=namespace)


def test_settings_are_read_from_a_configuration() -> None:
    """Each under its own name; what is not set keeps its default."""
    conf = {"redis_batches_lease": 5, "redis_batches_url": None, "lease": 7, "other": 1}

    assert Settings.read(conf) == Settings(lease=5)


def test_a_setting_may_be_zero() -> None:
    """Zero is not the same as not set."""
    assert Settings.read({"redis_batches_max_dead": 0}).max_dead == 0


def test_an_option_error_is_a_value_error() -> None:
    """And one of this package's."""
    assert issubclass(OptionError, (ValueError, BatchesError))
