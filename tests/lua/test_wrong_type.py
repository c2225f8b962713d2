"""A key of the wrong type is an error, and nothing is written: scripts do not roll back."""

from __future__ import annotations

import pytest

from redis_batches.core.errors import StoreError
from redis_batches.driver.scripts import load_scripts
from tests.support import raw
from tests.support.stage import VALUES, Stage
from tests.support.steps import GROUP

CASES = [
    pytest.param(name, key, id=f"{name}-{key}")
    for name, script in sorted(load_scripts().items())
    for key in script.keys
]


def test_every_script_is_here() -> None:
    """With values for it."""
    assert VALUES.keys() == load_scripts().keys()


@pytest.mark.parametrize("script", sorted(VALUES))
def test_every_script_has_something_to_do(stage: Stage, script: str) -> None:
    """Else the next test would be worth nothing."""
    before = stage.dump()
    stage.run(script)

    assert stage.dump() != before


@pytest.mark.parametrize(("script", "name"), CASES)
def test_a_foreign_key_leaves_every_other_key_unchanged(
    stage: Stage, script: str, name: str
) -> None:
    """Somebody else wrote it; the error names the reason."""
    refused_whole(stage, script, name)


@pytest.mark.parametrize("task_id", ["dead", "banned"])
def test_a_foreign_key_that_one_request_needs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, task_id: str
) -> None:
    """A dead letter that is called again, and an id that was revoked before."""
    raw.client(stage.store).zadd(raw.key(stage.store, "revoked"), {"banned": "9" * 13})
    monkeypatch.setitem(VALUES["push"], "requests", [task_id, "n", "", "", b"3"])
    refused_whole(stage, "push", "attempts")


def refused_whole(stage: Stage, script: str, name: str) -> None:
    """Asserts that a script changes nothing if somebody else wrote one of its keys."""
    token = VALUES[script].get("token", "")
    key = stage.keys(script).resolve(name, group=GROUP.id, token=token)
    raw.client(stage.store).delete(key)
    raw.client(stage.store).set(key, "foreign")
    before = stage.dump(key)

    with pytest.raises(StoreError, match="WRONGTYPE"):
        stage.run(script)
    assert stage.dump(key) == before
    assert raw.client(stage.store).get(key) == b"foreign"
