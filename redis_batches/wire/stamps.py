"""The stamps of a call, and how those that were revoked are remembered."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any

from redis_batches.wire.envelope import read_headers


def stamp_keys(stamps: Mapping[str, Any]) -> Iterator[str]:
    """Yields how stamps are remembered among revoked ids; no call can have such an id.

    Args:
        stamps: A value, or several, by the name of the stamp.
    """
    for name, values in stamps.items():
        for value in _listed(values):
            text = json.dumps([name, value], sort_keys=True, default=str)
            yield f"={blake2b(text.encode(), digest_size=16).hexdigest()}"


def has_stamp(envelope: bytes, wanted: Mapping[str, Any]) -> bool:
    """Whether a stored call has one of some stamps, by the rule of Celery's workers.

    Args:
        envelope: The call.
        wanted: A value, or several, by the name of the stamp.
    """
    headers = read_headers(envelope)
    stamps, names = headers.get("stamps"), headers.get("stamped_headers")
    # Whatever its sender wrote there; what no call has is no stamp.
    if not isinstance(stamps, dict) or not isinstance(names, list):
        return False
    return any(
        stamp in _listed(wanted[name])
        for name in names
        if isinstance(name, str) and name in wanted
        for stamp in _listed(stamps.get(name))
    )


def _listed(values: Any) -> Iterable[Any]:
    if values is None:
        return ()
    # A set would take no value that cannot be hashed.
    return list(values) if isinstance(values, (list, tuple, set)) else [values]
