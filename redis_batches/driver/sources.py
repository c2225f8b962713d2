"""The Lua files: found, read by their headers, and joined to what a server runs.

A header is the contract of its file, in these lines; `tests/lua/test_headers.py` holds them to it.

``-- claim: lease ...``
    The file's name, and what it does.
``-- Uses: records, doorbells``
    Files of `lua/lib` that go in front of it, with all that they use themselves, each once.
``-- Needs: pending, trigger``
    In a library only: slots that it takes of the scripts which use it. A name means the same in all
    scripts, so no call hands over what everybody calls `pending`.
``-- KEYS[2]  pending  list!  since_ms:...``
    A key: its name in `redis_batches.driver.keys`, its type, its content. With a ``!`` it is one of
    those that `guard()` reads by a command of their types, which the script calls before its first
    write: a key of the wrong type, met between two writes, would leave half of them undone. What
    the script reads itself before its first write needs none.
``-- ARGV[4]  lease_ms  int  ...``
    A value: its name, its type, its meaning. An `int` may be empty, which is nil; a `flag` is 1 or
    0; `text` is taken as it is; a `list` has all values from its place on, ``ARGV[10+]``.
``-- Returns {"claimed", fence}  ...``
    The replies, a line for each word: its fields, and what it means.
``-- Cost O(...).``
    How long it takes.

A slot is bound to a local of its name, so no code has a bare KEYS or ARGV.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1]
LIBRARIES = "lib"
_SLOT = re.compile(r"^-- (KEYS|ARGV)\[(\d+)(\+?)\]\s+(\w+)\s+(\w+)(!?)", re.MULTILINE)
_LINE = r"^-- {}: ([\w, ]+)$"
#: How a value of each type is bound.
_TYPES = {
    "text": "ARGV[{}]",
    "int": "tonumber(ARGV[{}])",
    "flag": "ARGV[{}] == '1'",
    "list": "{{unpack(ARGV, {})}}",
}
#: Reads a key of each type in no time.
_GUARDS = {"hash": "HLEN", "list": "LLEN", "zset": "ZCARD"}


class Slot(NamedTuple):
    """One of the KEYS or ARGV of a script.

    Attributes:
        kind: "KEYS" or "ARGV".
        number: Its place, from 1.
        more: "+" if it takes all from there on.
        name: How the script and its callers call it.
        type: Of the key, or of the value.
        guard: "!" if `guard()` reads the key.
    """

    kind: str
    number: str
    more: str
    name: str
    type: str
    guard: str

    @property
    def value(self) -> str:
        """The Lua expression to which its name is bound."""
        shape = "KEYS[{}]" if self.kind == "KEYS" else _TYPES[self.type]
        return shape.format(self.number)


def folder() -> Path:
    """Returns the folder of the Lua files: inside the wheel, or beside an editable install."""
    inside = PACKAGE / "lua"
    return inside if inside.is_dir() else PACKAGE.parent / "lua"


@cache
def load_sources() -> dict[str, str]:
    """Returns every script by its name, and every library by its name behind `lib/`."""
    root = folder()
    paths = [*root.glob("*.lua"), *(root / LIBRARIES).glob("*.lua")]
    return {
        path.relative_to(root).with_suffix("").as_posix(): path.read_text("utf-8")
        for path in sorted(paths)
    }


def slots_of(source: str) -> list[Slot]:
    """Returns the slots that a header names, in its order."""
    return [Slot(*found) for found in _SLOT.findall(source)]


def names_in(line: str, source: str) -> list[str]:
    """Returns the names in the lines of a header that begin with "Uses" or "Needs"."""
    found = re.findall(_LINE.format(line), source, re.MULTILINE)
    return [name for names in found for name in names.split(", ")]


def libraries_of(source: str, sources: Mapping[str, str]) -> list[str]:
    """Returns the libraries of a file, each behind those that it uses itself."""
    found: dict[str, None] = {}
    for name in names_in("Uses", source):
        found |= dict.fromkeys([*libraries_of(sources[f"{LIBRARIES}/{name}"], sources), name])
    return [*found]


def join(source: str, sources: Mapping[str, str]) -> str:
    """Returns what a server runs: bindings, `guard`, libraries and the script.

    Args:
        source: The script.
        sources: Has the libraries.
    """
    slots = slots_of(source)
    bindings = [_bind(slot for slot in slots if slot.kind == kind) for kind in ("KEYS", "ARGV")]
    libraries = [sources[f"{LIBRARIES}/{name}"] for name in libraries_of(source, sources)]
    # What a function takes of a function around it costs nothing, of the main chunk a search.
    body = ["local function run()", *_guard(slots), *libraries, source, "end", "return run()"]
    return "\n".join([*bindings, *body])


def _bind(slots: Iterable[Slot]) -> str:
    names = {slot.name: slot.value for slot in slots}
    return f"local {', '.join(names)} = {', '.join(names.values())}" if names else ""


def _guard(slots: Iterable[Slot]) -> list[str]:
    reads = [f"  redis.call('{_GUARDS[slot.type]}', {slot.name})" for slot in slots if slot.guard]
    return ["local function guard()", *reads, "end"] if reads else []
