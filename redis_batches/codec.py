"""A request as bytes and back.

An envelope is a version byte, the headers that cannot be derived from the rest as compact JSON, a
newline, and the body as kombu's serializer wrote it. Lua never looks inside.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from kombu.compression import compress, decompress
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads
from kombu.utils.encoding import bytes_to_str

from redis_batches.errors import BatchesError

VERSION = b"1"
_DEFAULT_TYPE = ("application/json", "utf-8")


class UnknownEnvelope(BatchesError):
    """The envelope was written by a newer version of this package."""


class CorruptEnvelope(BatchesError):
    """The envelope cannot be decoded."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One call, taken apart.

    Attributes:
        headers: The message headers that cannot be derived from the rest.
        body: (args, kwargs, embed) as of Celery's message protocol 2.
    """

    headers: dict[str, Any] = field(default_factory=dict)
    body: tuple[Any, Any, Any] = ((), {}, None)


def encode(envelope: Envelope, serializer: str | None, compression: str | None = None) -> bytes:
    """Returns the bytes of an envelope.

    Raises:
        kombu.exceptions.EncodeError: The serializer cannot take the arguments.
    """
    args, kwargs, embed = envelope.body
    body = (args, kwargs, embed) if embed and any(embed.values()) else (args, kwargs)
    content_type, encoding, dumped = dumps(body, serializer=serializer)
    payload: Any = dumped.encode() if isinstance(dumped, str) else dumped
    meta = dict(envelope.headers)
    if (content_type, encoding) != _DEFAULT_TYPE:
        meta["content"] = [content_type, encoding]
    if compression:
        payload, meta["compressed"] = compress(payload, compression)
    try:
        head = json.dumps(meta, separators=(",", ":")).encode() if meta else b""
    except (TypeError, ValueError) as exc:
        raise EncodeError(f"the headers of the call are not JSON: {exc}") from exc
    return b"%s%s\n%s" % (VERSION, head, payload)


def decode(data: bytes, accept: set[str] | None) -> Envelope:
    """Returns the envelope of some bytes.

    Args:
        data: What `encode` returned.
        accept: Content types that may be decoded, checked before anything is; None for JSON only.

    Raises:
        UnknownEnvelope: A newer version wrote it.
        CorruptEnvelope: Anything else is wrong with it.
    """
    if data[:1] != VERSION:
        if data[:1].isdigit():
            raise UnknownEnvelope(f"envelope version {data[:1]!r} is not known to this worker")
        raise CorruptEnvelope("the stored request has no version")
    head, _, payload = data[1:].partition(b"\n")
    try:
        meta = json.loads(head) if head else {}
        content_type, encoding = meta.pop("content", _DEFAULT_TYPE)
        if compressed := meta.pop("compressed", None):
            payload = decompress(payload, compressed)
        body = loads(payload, content_type, encoding, accept=accept or {"application/json"})
        args, kwargs, *more = body
        embed = more[0] if more else None
        parts = ((args, (list, tuple)), (kwargs, dict), (embed or {}, dict))
        if not all(isinstance(part, kind) for part, kind in parts):
            raise TypeError("the body is not a call")
        return Envelope(meta, (args, kwargs, embed))
    except Exception as exc:
        raise CorruptEnvelope(f"the stored request cannot be decoded: {exc!r}") from exc


def text(value: Any) -> str:
    """Returns text for what Redis returned."""
    return str(bytes_to_str(value))
