"""What a worker makes of a call that comes by the broker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from redis_batches.worker.incoming import Strategy


def test_a_call_goes_on_if_celery_cannot_tell_whether_it_was_revoked() -> None:
    """Odd stamps, or a result backend that is down: whoever claims it looks again."""

    def revoked() -> Any:
        raise TypeError("argument of type 'int' is not iterable")

    request = SimpleNamespace(
        id="a", name="shop.click", argsrepr="()", kwargsrepr="{}", eta=None, revoked=revoked
    )
    assert not Strategy._is_revoked(Strategy.__new__(Strategy), request)
