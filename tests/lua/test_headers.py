"""The header of each script is its contract: what it says of the code is true."""

from __future__ import annotations

import re

import pytest

from redis_batches.driver.scripts import PRELUDE, Script, load_scripts, load_sources

SLOT = re.compile(r"^-- (KEYS|ARGV)\[(\d+)(\+?)\] +(\w+)", re.MULTILINE)
BINDING = re.compile(r"^local ([\w, ]+) =((?:.|\n {2})+)", re.MULTILINE)
USE = re.compile(r"(tonumber\()?(\{unpack\()?(KEYS|ARGV)(\[(\d+)\]|, (\d+)\)\}?)")
REPLY = re.compile(r"\{'(\w+)'|\{ended and '(\w+)' or '(\w+)'\}")
STATUSES = {"new", "again", "done", "duplicate", "full", "forgotten"}


@pytest.fixture(params=sorted(load_scripts()))
def script(request: pytest.FixtureRequest) -> Script:
    """Every script."""
    return load_scripts()[request.param]


def split(script: Script) -> tuple[str, str, str]:
    """Returns the header, the lines that bind slots to names, and the rest."""
    source = load_sources()[script.name]
    header, code = re.split(r"^(?!--)", source, maxsplit=1, flags=re.MULTILINE)
    bindings, _, body = code.partition("\n\n")
    return header, bindings, body


def bound_slots(bindings: str) -> dict[str, str]:
    """Returns the name to which each slot is bound."""
    found = {}
    for match in BINDING.finditer(bindings):
        names = [name.strip() for name in match[1].split(",")]
        uses = USE.findall(match[2])
        assert len(names) == len(uses), f"{names} do not take a slot each"
        for name, (_, _, kind, _, one, many) in zip(names, uses, strict=True):
            found[f"{kind}[{one}]" if one else f"{kind}[{many}+]"] = name
    return found


def test_it_begins_with_its_name_and_what_it_does(script: Script) -> None:
    """In the first line, as a sentence."""
    assert re.match(rf"-- {script.name}: [^\n]+", split(script)[0])


def test_the_slots_are_numbered_in_order(script: Script) -> None:
    """From 1, keys first, a list at most at the end."""
    slots = [f"{kind}{number}{more}" for kind, number, more, _ in SLOT.findall(split(script)[0])]
    expected = [f"KEYS{number + 1}" for number in range(len(script.keys))]
    expected += [f"ARGV{number + 1}" for number in range(len(script.slots))]
    expected += [f"ARGV{len(script.slots) + 1}+"] if script.rest else []
    assert slots == expected


def test_each_slot_is_bound_to_a_local_of_its_name(script: Script) -> None:
    """All but one that the header says is not used."""
    header, bindings, _ = split(script)
    named = {
        f"{kind}[{number}{more}]": name
        for kind, number, more, name in SLOT.findall(header)
        if not re.search(rf"^-- {kind}\[{number}\].* not used", header, re.MULTILINE)
    }
    assert bound_slots(bindings) == named


def test_no_slot_is_used_behind_the_bindings(script: Script) -> None:
    """So that a number stands in one place."""
    assert not re.search(r"\b(KEYS|ARGV)\b", split(script)[2])


def test_it_says_what_it_returns_and_costs(script: Script) -> None:
    """In these words."""
    header = split(script)[0].replace("\n-- ", " ")
    assert re.search(r"\bReturns \{", header)
    assert re.search(r"\bCost O\(.+\)\.", header)


def test_every_word_of_a_reply_is_in_the_header(script: Script) -> None:
    """And every word of the header is a reply."""
    header, _, body = split(script)
    said = set(re.findall(r'\{"(\w+)"', header))
    returned = {word for words in REPLY.findall(body) for word in words if word}
    assert said == returned


def test_every_status_of_a_push_is_in_its_header() -> None:
    """They follow the word."""
    header = split(load_scripts()["push"])[0]
    assert set(re.findall(r'"(\w+)"', header)) - {"pushed"} == STATUSES


@pytest.mark.parametrize("name", [PRELUDE, *sorted(load_scripts())])
def test_commands_are_in_capitals(name: str) -> None:
    """In direct calls and in those of many values."""
    source = load_sources()[name]
    commands = re.findall(r"(?:redis\.call|call_many)\('(\w+)'", source)
    assert all(command.isupper() for command in commands)
