"""The header of each Lua file is its contract: what it says of the code is true."""

from __future__ import annotations

import re

import pytest

from redis_batches.driver.scripts import Script, load_scripts
from redis_batches.driver.sources import (
    libraries_of,
    load_sources,
    names_in,
    slots_of,
)
from tests.support.lua import Names

SOURCES = load_sources()
LIBRARIES = sorted(name for name in SOURCES if name.startswith("lib/"))
NAMES = {name: Names(source) for name, source in SOURCES.items()}
LUA = {
    "ipairs",
    "math",
    "pairs",
    "redis",
    "string",
    "table",
    "tonumber",
    "tostring",
    "type",
    "unpack",
}
#: A word in the place of the first value of a reply; a choice of words is of one shape.
REPLY = re.compile(
    r"return \{(?:table\.concat\(\{)?"
    r"(?:'(\w+)'|(?:\w+ == )?\w+ and '(\w+)' or '(\w+)')((?:, [^{}]+)?)\}"
)
SAID = re.compile(r'^-- (?:Returns| {7}) \{"(\w+)"((?:,? \w+)*)\}', re.MULTILINE)
STATUSES = {"new", "again", "done", "duplicate", "full", "forgotten"}
TYPES = {"KEYS": {"hash", "list", "zset"}, "ARGV": {"text", "int", "flag", "list"}}


@pytest.fixture(params=sorted(load_scripts()))
def script(request: pytest.FixtureRequest) -> Script:
    """Every script."""
    return load_scripts()[request.param]


@pytest.fixture(params=sorted(SOURCES))
def name(request: pytest.FixtureRequest) -> str:
    """Every script and library."""
    return str(request.param)


def split(name: str) -> tuple[str, str]:
    """Returns the header of a file, and its code."""
    header, code = re.split(r"^(?!--)", SOURCES[name], maxsplit=1, flags=re.MULTILINE)
    return header, code


def libraries(name: str) -> list[str]:
    """Returns the files that go in front of a script."""
    return [f"lib/{library}" for library in libraries_of(SOURCES[name], SOURCES)]


def replies(name: str) -> dict[str, int]:
    """Returns the words with which a script answers, and how many fields follow each."""
    found = {}
    for code in map(SOURCES.__getitem__, [*libraries(name), name]):
        for one, this, that, fields in REPLY.findall(code):
            # A comma within parentheses parts no fields; `joined` returns two.
            outer = re.sub(r"\([^()]*(?:\([^()]*\)[^()]*)*\)", "", fields)
            found |= dict.fromkeys(
                filter(None, (one, this, that)), outer.count(",") + ("joined(" in fields)
            )
    return found


def test_it_begins_with_its_name_and_what_it_does(name: str) -> None:
    """In the first line, as a sentence."""
    assert re.match(rf"-- {name.removeprefix('lib/')}: [^\n]+", SOURCES[name])


def test_the_slots_are_numbered_in_order(script: Script) -> None:
    """From 1, keys first, a list at most at the end."""
    slots = slots_of(split(script.name)[0])
    expected = [f"KEYS{number + 1}" for number in range(len(script.keys))]
    expected += [f"ARGV{number + 1}" for number in range(len(script.slots))]
    expected += [f"ARGV{len(script.slots) + 1}+"] if script.rest else []
    assert [f"{slot.kind}{slot.number}{slot.more}" for slot in slots] == expected


def test_each_slot_has_a_type(script: Script) -> None:
    """A key one of Redis, a value one of the loader's; only keys are guarded."""
    for slot in slots_of(split(script.name)[0]):
        assert slot.type in TYPES[slot.kind], slot
        assert not slot.guard or slot.kind == "KEYS", slot
        assert slot.kind == "KEYS" or (slot.type == "list") == bool(slot.more), slot


def test_each_slot_is_used(script: Script) -> None:
    """By the script or a library of its, but for one that the header says is not."""
    header = split(script.name)[0]
    used = NAMES[script.name].free.union(*(NAMES[name].free for name in libraries(script.name)))
    for slot in slots_of(header):
        line = re.search(rf"^-- {slot.kind}\[{slot.number}.*", header, re.MULTILINE)
        assert line is not None
        assert (slot.name in used) != ("not used" in line[0]), slot.name


def test_keys_are_guarded_once(script: Script) -> None:
    """Where a header marks any."""
    header, code = split(script.name)
    marked = any(slot.guard for slot in slots_of(header))
    assert len(re.findall(r"^ *guard\(\)$", code, re.MULTILINE)) == marked


def test_every_name_is_known(name: str) -> None:
    """One of Lua, of a slot, or of a library that the header names; and each is needed."""
    uses, needs = names_in("Uses", SOURCES[name]), set(names_in("Needs", SOURCES[name]))
    free, slots = NAMES[name].free - LUA, slots_of(SOURCES[name])
    if any(slot.guard for slot in slots):
        free.remove("guard")
    if name in load_scripts():
        needs = free & {slot.name for slot in slots}
    given = {library: NAMES[f"lib/{library}"].given for library in uses}
    assert uses == sorted(uses)
    assert [library for library in uses if not free & given[library]] == []
    assert free == needs.union(*(free & names for names in given.values()))


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_script_has_what_its_libraries_need(library: str) -> None:
    """Under the same names."""
    needs = set(names_in("Needs", SOURCES[library]))
    for name, script in load_scripts().items():
        if library in libraries(name):
            assert needs <= {*script.keys, *script.slots, script.rest}, name


def test_no_two_libraries_give_the_same_name() -> None:
    """Nor that of a slot: a name means one thing in all scripts."""
    given = [name for library in LIBRARIES for name in NAMES[library].given]
    slots = {slot.name for name in load_scripts() for slot in slots_of(SOURCES[name])}
    assert sorted(given) == sorted({*given} - slots)


def test_it_says_what_it_costs(script: Script) -> None:
    """In these words."""
    assert re.search(r"\bCost O\(.+\)\.", split(script.name)[0].replace("\n-- ", " "))


def test_every_reply_is_in_the_header(script: Script) -> None:
    """A line for each word, with as many fields as it has."""
    said = {
        word: len(re.findall(r"\w+", fields))
        for word, fields in SAID.findall(split(script.name)[0])
    }
    assert replies(script.name) == said


def test_every_status_of_a_push_is_in_its_header() -> None:
    """They follow the word."""
    header = split("push")[0]
    assert set(re.findall(r'"(\w+)"', header)) - {"pushed"} == STATUSES


def test_commands_are_in_capitals(name: str) -> None:
    """In direct calls and in those of many values."""
    commands = re.findall(r"(?:redis\.call|call_many)\('(\w+)'", SOURCES[name])
    assert all(command.isupper() for command in commands)


def test_files_and_functions_are_short(name: str) -> None:
    """So that a script reads as a page, and a function at a glance."""
    lines = SOURCES[name].splitlines()
    assert len(lines) <= (100 if name in load_scripts() else 130)
    functions = re.findall(r"^local function \w+.*?^end$", SOURCES[name], re.MULTILINE | re.DOTALL)
    assert all(function.count("\n") < 40 for function in functions)
