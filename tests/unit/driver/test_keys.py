"""Key names: one cluster slot per task, nothing shared between tasks, and the table is true."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot

from redis_batches.driver import keys as keys_module
from redis_batches.driver.keys import Keys, NamespaceKeys
from redis_batches.driver.scripts import load_scripts

NAMES = st.text(min_size=1, max_size=20).filter(str.isprintable)
SHARED = {"tasks", "beat"}
PER_TASK = {name for script in load_scripts().values() for name in script.keys} - SHARED


def names_of(keys: Keys) -> set[str]:
    """Returns every key of a task."""
    return {keys.resolve(name, group="0a1b2c3d4e5f", token="token") for name in PER_TASK}


def test_names_are_readable() -> None:
    """With the namespace and the task in the tag."""
    keys = Keys("celery", "shop.click")

    assert keys.resolve("items") == "rb:{celery/shop.click}:items"
    assert keys.pending("abc") == "rb:{celery/shop.click}:q:abc"
    assert keys.batch("xyz") == "rb:{celery/shop.click}:c:xyz"
    assert NamespaceKeys("celery").resolve("tasks") == "rb:{celery}:tasks"


def test_a_header_resolves_to_the_lists_too() -> None:
    """By the group and the token of the call."""
    keys = Keys("celery", "shop.click")

    assert keys.resolve("pending", group="abc") == keys.pending("abc")
    assert keys.resolve("batch", token="xyz") == keys.batch("xyz")


def test_a_name_that_no_key_has_is_an_error() -> None:
    """It cannot become a key of its own."""
    with pytest.raises(KeyError):
        Keys("celery", "shop.click").resolve("itmes")


@given(namespace=NAMES, task=NAMES)
def test_all_keys_of_a_task_share_a_slot(namespace: str, task: str) -> None:
    """Whatever its name is: braces, spaces, emoji."""
    keys = names_of(Keys(namespace, task))

    assert len(keys) == len(PER_TASK)
    assert len({key_slot(key.encode()) for key in keys}) == 1


@given(namespace=NAMES, task=NAMES)
def test_names_are_plain(namespace: str, task: str) -> None:
    """A person can type them, and an ACL's pattern takes them."""
    for key in names_of(Keys(namespace, task)):
        assert re.fullmatch(r"rb:\{[\w.~%/-]+\}:[\w:]+", key, re.ASCII)


@given(st.tuples(NAMES, NAMES), st.tuples(NAMES, NAMES))
def test_two_tasks_share_no_key(one: tuple[str, str], other: tuple[str, str]) -> None:
    """Nor do two namespaces."""
    if one != other:
        assert not names_of(Keys(*one)) & names_of(Keys(*other))


def test_a_slash_belongs_to_its_name() -> None:
    """A namespace may have one, and so may a task."""
    assert not names_of(Keys("a", "b/c")) & names_of(Keys("a/b", "c"))


@given(namespace=NAMES, task=NAMES)
def test_the_keys_of_a_namespace_are_no_tasks(namespace: str, task: str) -> None:
    """Whatever it is called."""
    shared = NamespaceKeys(namespace)

    assert not names_of(Keys(namespace, task)) & {shared.resolve(name) for name in SHARED}


def test_the_table_lists_every_key() -> None:
    """And no other."""
    table = set(re.findall(r"^`rb:T:(\w+)", keys_module.__doc__ or "", re.MULTILINE))
    keys = Keys("celery", "shop.click")
    used = {keys.resolve(name, group="", token="").split(":")[2] for name in PER_TASK}

    assert table == used


def test_the_table_says_the_type_of_every_key() -> None:
    """As the scripts' headers do."""
    doc = keys_module.__doc__ or ""
    types = dict(re.findall(r"^`rb:T:(\w+)[^`]*` +(hash|list|zset)", doc, re.MULTILINE))
    keys = Keys("celery", "shop.click")
    for script in load_scripts().values():
        header = "\n".join(line for line in script.source.splitlines() if line.startswith("--"))
        for name, kind in re.findall(r"^-- KEYS\[\d+\] +(\w+) +(\w+)", header, re.MULTILINE):
            if name in PER_TASK:
                assert types[keys.resolve(name).split(":")[2]] == kind, (script.name, name)
