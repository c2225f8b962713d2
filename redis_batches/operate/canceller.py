"""Takes requests of one task out, by their ids or stamps, wherever they wait."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

from redis_batches.buffer.chunks import CANCEL_CHUNK, chunked
from redis_batches.buffer.lease import Lease
from redis_batches.buffer.store import Store
from redis_batches.core.model import Place, Trigger
from redis_batches.wire.stamps import has_stamp, stamp_keys

_ByGroup: TypeAlias = dict[str, list[str]]

#: Looks for a request that its own batch moves from one group to another meanwhile.
MAX_ROUNDS = 5


class Canceller:
    """Cancels requests of one task.

    Args:
        store: The task's store.
        trigger: When a batch of the task is due.
        discard: Settles what a cancel leased; it may fail, and the lease then ends by itself.
    """

    def __init__(self, store: Store, trigger: Trigger, discard: Callable[[Lease], None]) -> None:
        self._store = store
        self._trigger = trigger
        self._discard = discard

    def cancel(self, ids: Iterable[str]) -> dict[str, Place]:
        """Takes out what waits or is delayed, and marks what runs; returns where each was.

        Raises:
            StoreError: Redis could not be reached, or refused.
        """
        places: dict[str, Place] = {}
        for chunk in chunked(dict.fromkeys(ids), CANCEL_CHUNK):
            wanted: _ByGroup = {"": chunk}
            for _ in range(MAX_ROUNDS):
                wanted = self._round(wanted, places)
                if not wanted:
                    break
        return places

    def _round(
        self, wanted: dict[str, list[str]], places: dict[str, Place]
    ) -> dict[str, list[str]]:
        """Asks once per group; returns what waits in another one than was thought."""
        elsewhere: _ByGroup = {}
        for group, ids in wanted.items():
            lease, found = self._store.cancel(group, ids, self._trigger)
            for each in found:
                places[each.id] = each.place
                if each.place is Place.ELSEWHERE:
                    elsewhere.setdefault(each.group, []).append(each.id)
            if lease is not None:
                self._discard(lease)
        return elsewhere

    def cancel_stamped(self, stamps: Mapping[str, Any]) -> Iterator[dict[str, Place]]:
        """Cancels what has one of some stamps, step by step.

        The stamps are remembered as ids are, so that a call that is made later with one of them is
        revoked by whoever claims it. Then it reads every stored request of the task once, so it
        takes time and bandwidth in proportion to the backlog; each step reads some 500 requests.

        Args:
            stamps: A value, or several, by the name of the stamp.

        Yields:
            Where the matching requests of a step were.
        """
        for chunk in chunked(stamp_keys(stamps), CANCEL_CHUNK):
            # No request has such an id: it is remembered, and no more.
            self._store.cancel("", list(dict.fromkeys(chunk)), self._trigger)
        for page in self._store.index.stored():
            yield self.cancel(name for name, envelope in page if has_stamp(envelope, stamps))
