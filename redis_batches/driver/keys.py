"""The name of every key in Redis, and what it holds: the data model.

`T` stands for `{namespace/task}`; the braces make all keys of a task share one cluster slot. `g` is
the id of a group: the requests of one route (and batch key) that may share a batch. No key has a
time to live, so an eviction policy of the `volatile-*` kind never touches one. `bells` is by group.
A route ends when nothing of its group waits, is delayed or dead: what runs has it in its claim.

======================  ====  ===============================================  =====================
key                     type  content                                          an entry ends with
======================  ====  ===============================================  =====================
`rb:T:items`            hash  id -> group:nonce:size:envelope, the request     ack
`rb:T:q:g`              list  pending: since_ms:split:size:id, oldest first    claim
`rb:T:c:token`          list  one claimed batch, the same entries              ack, reclaim
`rb:T:claims`           hash  token -> record; bell:id -> token                ack, reclaim
`rb:T:own`              hash  id -> token:nonce of the run that holds it       ack, release, reclaim
`rb:T:leases`           zset  token -> expiry in ms                            ack, reclaim
`rb:T:groups`           zset  group -> when it next wants attention, in ms     empty group
`rb:T:bells`            hash  outstanding:rung_ms:pause_ms:feared:fills        empty group
`rb:T:routes`           hash  group -> where to ring for it, JSON              nothing waits
`rb:T:delayed`          zset  group:id -> when a retry is ready, in ms         promote
`rb:T:eta`              zset  group:id -> wall clock of its eta, in ms         promote
`rb:T:dead`             zset  group:id -> when it died, in ms                  a new call, the bound
`rb:T:parked`           hash  group -> how many of it are delayed or dead      none is
`rb:T:att`              hash  id -> record of attempts, as `Attempts` has them ack
`rb:T:err`              hash  id -> text of its last error                     ack
`rb:T:stale`            hash  group:id -> which entries a cancel left in q:g   claim
`rb:T:done`             zset  nonce or token -> expiry in ms                   ack, sweep
`rb:T:revoked`          zset  revoked id, or =hash of a stamp -> expiry in ms  cancel, sweep
`rb:T:stats`            hash  counters, the last fence, the leading sweeper    never
`rb:{namespace}:tasks`  hash  task -> its trigger, packed, written by workers  never
`rb:{namespace}:beat`   hash  whether beat's last sweep message still waits    never
======================  ====  ===============================================  =====================
"""

from __future__ import annotations

from urllib.parse import quote

_STATIC = {
    "items": "items",
    "claims": "claims",
    "own": "own",
    "leases": "leases",
    "groups": "groups",
    "bells": "bells",
    "routes": "routes",
    "delayed": "delayed",
    "eta": "eta",
    "dead": "dead",
    "parked": "parked",
    "attempts": "att",
    "errors": "err",
    "stale": "stale",
    "done": "done",
    "revoked": "revoked",
    "stats": "stats",
}


class NamespaceKeys:
    """The keys that the tasks of a namespace share."""

    def __init__(self, namespace: str) -> None:
        self._prefix = f"rb:{{{quote(namespace, safe='')}}}:"

    def resolve(self, name: str, **_: str) -> str:
        """Returns the key of `tasks` or `beat`."""
        return self._prefix + name


class Keys:
    """The keys of one task, by the names that the scripts' headers give them."""

    def __init__(self, namespace: str, task: str) -> None:
        self._prefix = f"rb:{{{quote(namespace, safe='')}/{quote(task, safe='')}}}:"
        self._static = {name: self._prefix + key for name, key in _STATIC.items()}

    def pending(self, group: str) -> str:
        """Returns the list in which the requests of a group wait."""
        return f"{self._prefix}q:{group}"

    def batch(self, token: str) -> str:
        """Returns the list of one claimed batch."""
        return f"{self._prefix}c:{token}"

    def resolve(self, name: str, *, group: str = "", token: str = "") -> str:
        """Returns the key that a script's header calls `name`."""
        if name == "pending":
            return self.pending(group)
        if name == "batch":
            return self.batch(token)
        return self._static[name]
