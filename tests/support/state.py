"""All that Redis holds of one task at one moment, taken apart, and what must be true of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis

from redis_batches.driver.keys import Keys

FRESH = "-"


def ensure(condition: object, message: object, *about: object) -> None:
    """Raises AssertionError with a message and what it is about, unless a condition holds."""
    if not condition:
        raise AssertionError(": ".join(map(str, (message, *about))))


@dataclass(frozen=True)
class Entry:
    """One entry of a pending list; its split level is FRESH if it was never given back."""

    since_ms: int
    split: str
    size: str
    id: str

    @classmethod
    def read(cls, raw: bytes) -> Entry:
        since_ms, split, size, task_id = raw.decode().split(":", 3)
        return cls(int(since_ms), split, size, task_id)

    def is_due(self, interval_ms: int, now_ms: int) -> bool:
        """Whether it need not wait for others any more."""
        return self.split != FRESH or not now_ms - interval_ms < self.since_ms <= now_ms


@dataclass(frozen=True)
class Item:
    """One stored request."""

    group: str
    nonce: str
    size: str
    envelope: bytes

    @classmethod
    def read(cls, raw: bytes) -> Item:
        group, nonce, size, envelope = raw.split(b":", 3)
        return cls(group.decode(), nonce.decode(), size.decode(), envelope)

    @property
    def weight(self) -> int:
        """What the limit of a batch's bytes counts."""
        stored = len(f"{self.group}:{self.nonce}:{self.size}:") + len(self.envelope)
        return max(stored, int(self.size or 0))


class _Kind(NamedTuple):
    """How a key is read: the command, its arguments, and what becomes of the reply."""

    command: str
    args: tuple[Any, ...]
    parse: Callable[[Any], Any]


# Sorted: the order of a hash is another one in each server process, and chance picks from it.
_ITEMS = _Kind("hgetall", (), lambda got: {k.decode(): Item.read(got[k]) for k in sorted(got)})
_FIELDS = _Kind("hgetall", (), lambda got: {k.decode(): got[k].decode() for k in sorted(got)})
_SCORES = _Kind("zrange", (0, -1, False, True), lambda got: {k.decode(): int(v) for k, v in got})
_ENTRIES = _Kind("lrange", (0, -1), lambda got: [Entry.read(raw) for raw in got])


class Seen:
    """What was read of each key, and the dump that tells whether it has changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[bytes | None, Any]] = {}

    def read(self, client: redis.Redis, wanted: dict[str, tuple[str, _Kind]]) -> dict[str, Any]:
        """Returns the content of keys; a name, a key and its kind for each."""
        if not wanted:
            return {}
        pipe = client.pipeline(transaction=False)
        for key, _ in wanted.values():
            pipe.dump(key)
        dumps = dict(zip(wanted, pipe.execute(), strict=True))
        changed = []
        for name, (key, kind) in wanted.items():
            if key not in self._known or self._known[key][0] != dumps[name]:
                changed.append(name)
                getattr(pipe, kind.command)(key, *kind.args)
        for name, reply in zip(changed, pipe.execute() if changed else (), strict=True):
            key, kind = wanted[name]
            self._known[key] = (dumps[name], kind.parse(reply))
        return {name: self._known[key][1] for name, (key, _) in wanted.items()}


@dataclass(frozen=True)
class State:
    """Every key of one task, by the names of `redis_batches.driver.keys`.

    Attributes:
        pending: Without the entries that count for nothing, because a cancel left them behind.
        lists: The pending lists with them.
    """

    items: dict[str, Item]
    pending: dict[str, list[Entry]]
    lists: dict[str, list[Entry]]
    batches: dict[str, list[Entry]]
    claims: dict[str, str]
    own: dict[str, str]
    leases: dict[str, int]
    groups: dict[str, int]
    bells: dict[str, str]
    routes: dict[str, str]
    delayed: dict[str, int]
    eta: dict[str, int]
    dead: dict[str, int]
    attempts: dict[str, str]
    errors: dict[str, str]
    stale: dict[str, str]
    done: dict[str, int]
    revoked: dict[str, int]
    stats: dict[str, str]
    parked: dict[str, str]

    @classmethod
    def read(
        cls, client: redis.Redis, keys: Keys, groups: list[str], seen: Seen | None = None
    ) -> State:
        """Reads everything.

        Args:
            client: A connection to the server.
            keys: The keys of the task.
            groups: The groups whose lists are read.
            seen: What was read before: of a key that has not changed since, only that is asked.
        """
        seen = Seen() if seen is None else seen
        fields = (
            "claims",
            "own",
            "bells",
            "routes",
            "attempts",
            "errors",
            "stale",
            "stats",
            "parked",
        )
        scores = ("leases", "groups", "delayed", "eta", "dead", "done", "revoked")
        found = seen.read(
            client,
            {
                "items": (keys.resolve("items"), _ITEMS),
                **{name: (keys.resolve(name), _FIELDS) for name in fields},
                **{name: (keys.resolve(name), _SCORES) for name in scores},
                **{f"q:{group}": (keys.pending(group), _ENTRIES) for group in groups},
            },
        )
        lists = {group: found.pop(f"q:{group}") for group in groups}
        pending = {
            group: _without_stale(group, entries, found["stale"])
            for group, entries in lists.items()
        }
        tokens = [name for name in found["claims"] if not name.startswith("bell:")]
        batches = seen.read(client, {token: (keys.batch(token), _ENTRIES) for token in tokens})
        return cls(pending=pending, lists=lists, batches=batches, **found)

    @property
    def waiting(self) -> int:
        """What the limit of waiting requests counts."""
        return len(self.items) - len(self.dead)

    def is_dead(self, task_id: str) -> bool:
        """Whether a request is a dead letter."""
        item = self.items.get(task_id)
        return item is not None and f"{item.group}:{task_id}" in self.dead

    def bell(self, group: str) -> tuple[int, int, int]:
        """Returns the doorbells that are out, when the last one was rung, and the pause, in ms."""
        out, rung_ms, pause_ms, *_ = self.bells.get(group, "0:0:1000:0:0").split(":")
        return int(out), int(rung_ms), int(pause_ms)

    def places(self, task_id: str) -> list[str]:
        """Returns every place in which a request is; it should be one."""
        item = self.items[task_id]
        found = ["owned"] if task_id in self.own else []
        found += [
            f"pending in {group}"
            for group, entries in self.pending.items()
            for entry in entries
            if entry.id == task_id
        ]
        member = f"{item.group}:{task_id}"
        found += [name for name in ("delayed", "eta", "dead") if member in getattr(self, name)]
        return found

    def check(self) -> None:
        """Checks what is true at every moment, whatever happened before."""
        self._check_one_place()
        self._check_stale()
        self._check_owners()
        self._check_attention()
        self._check_order()
        pushed, acked, dropped = (
            int(self.stats.get(name, 0)) for name in ("pushed", "acked", "dropped")
        )
        ensure(pushed - acked - dropped == len(self.items), "the ledger does not add up")

    def _check_one_place(self) -> None:
        """Every request is in exactly one place: pending, owned, delayed or dead."""
        places: Counter[str] = Counter(self.own.keys())
        for group, entries in self.pending.items():
            for entry in entries:
                item = self.items.get(entry.id)
                ensure(item is None or item.group == group, "waits in a wrong group", entry)
                places[entry.id] += 1
        for members in (self.delayed, self.eta, self.dead):
            for member in members:
                group, _, task_id = member.partition(":")
                item = self.items.get(task_id)
                ensure(item and item.group == group, "names no request", member)
                places[task_id] += 1
        lost = self.items.keys() - places.keys()
        ensure(not lost, "in no place", lost)
        ensure(places.keys() == self.items.keys(), "an index names a request that is gone")
        twice = {task_id for task_id, count in places.items() if count > 1}
        ensure(not twice, "in two places", twice)
        ensure(self.attempts.keys() <= self.items.keys(), "attempts of a request that is gone")
        ensure(self.errors.keys() <= self.items.keys(), "an error of a request that is gone")

    def _check_stale(self) -> None:
        """What counts for nothing is there: so no entry that counts is ever skipped."""
        for member, marks in self.stale.items():
            group, _, task_id = member.partition(":")
            entries = [entry for entry in self.lists[group] if entry.id == task_id]
            ensure("s" in marks, "notes nothing", member)
            ensure(len(marks) <= len(entries), "notes an entry that is not there", member)

    def _check_owners(self) -> None:
        """What is owned is in one live batch."""
        tokens = {name for name in self.claims if not name.startswith("bell:")}
        ensure(tokens == self.leases.keys(), "claims and leases name different runs")
        held = Counter(
            (token, entry.id) for token, entries in self.batches.items() for entry in entries
        )
        for task_id, value in self.own.items():
            token = value.partition(":")[0]
            ensure(held[token, task_id] == 1, "owned, but not in the batch", task_id, token)
        for name, token in self.claims.items():
            ensure(name in tokens or token in tokens, "a doorbell names no run", name)

    def _check_attention(self) -> None:
        """A sweep finds every group that waits, and no others, and knows where to ring for it."""
        waiting = {group for group, entries in self.lists.items() if entries}
        members = (*self.delayed, *self.eta, *self.dead)
        later = Counter(member.partition(":")[0] for member in members)
        ensure(self.groups.keys() == waiting, "the groups to sweep are not those that wait")
        ensure(self.bells.keys() <= waiting, "doorbells are counted for an empty group")
        ensure(dict(later) == {k: int(v) for k, v in self.parked.items()}, "parked is not counted")
        known = waiting | later.keys()
        ensure(known <= self.routes.keys(), "nobody knows where to ring for a group")
        running = {value.partition("|")[0] for value in self.claims.values()}
        ensure(self.routes.keys() <= known | running, "a route of nothing is kept")

    def _check_order(self) -> None:
        """What was given back goes before what was not, by age."""
        for entries in self.pending.values():
            given_back = [entry for entry in entries if entry.split != FRESH]
            ensure(entries[: len(given_back)] == given_back, "what was given back waits behind")
            ages = [entry.since_ms for entry in given_back]
            ensure(ages == sorted(ages), "what was given back is not in the order of its age")


def _without_stale(group: str, entries: list[Entry], stale: dict[str, str]) -> list[Entry]:
    """Leaves out the entries that a cancel left behind, as a claim does."""
    marks = {member: iter(noted) for member, noted in stale.items()}
    return [
        entry for entry in entries if next(marks.get(f"{group}:{entry.id}", iter("l")), "l") == "l"
    ]
