"""A request as bytes and back.

An envelope is a version byte, a head as compact JSON, a newline, and the body as kombu's serializer
wrote it. The head has the headers that cannot be derived from the rest, if there are any; it is a
list of these and of properties, content type and compression, if there is more to say than headers,
which may have any name. Lua never looks inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
        properties: The message properties that cannot be derived from the rest.
    """

    headers: dict[str, Any] = field(default_factory=dict)
    body: tuple[Any, Any, Any] = ((), {}, None)
    properties: dict[str, Any] = field(default_factory=dict)


def encode(envelope: Envelope, serializer: str | None, compression: str | None = None) -> bytes:
    """Returns the bytes of an envelope.

    Raises:
        kombu.exceptions.EncodeError: The serializer cannot take the arguments.
    """
    args, kwargs, embed = envelope.body
    body = (args, kwargs, embed) if embed and any(embed.values()) else (args, kwargs)
    content_type, encoding, dumped = dumps(body, serializer=serializer)
    return wrap(
        envelope.headers, dumped, (content_type, encoding), compression, envelope.properties
    )


def wrap(
    headers: Mapping[str, Any],
    body: str | bytes,
    content: tuple[str, str],
    compression: str | None = None,
    properties: Mapping[str, Any] | None = None,
) -> bytes:
    """Returns the bytes of an envelope whose body is serialized already.

    Args:
        headers: The message headers that cannot be derived from the rest.
        body: (args, kwargs, embed) as of Celery's message protocol 2, serialized.
        content: Its content type and its encoding.
        compression: What to compress it with, if anything.
        properties: The message properties that cannot be derived from the rest.

    Raises:
        kombu.exceptions.EncodeError: A header is not JSON.
    """
    payload: Any = body.encode() if isinstance(body, str) else bytes(body)
    meta: dict[str, Any] = {"properties": properties} if properties else {}
    if content != _DEFAULT_TYPE:
        meta["content"] = list(content)
    if compression:
        payload, meta["compressed"] = compress(payload, compression)
    parts: Any = [headers, meta] if meta else headers
    try:
        head = json.dumps(parts, separators=(",", ":")).encode() if parts else b""
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
        found = json.loads(head) if head else {}
        headers, meta = found if isinstance(found, list) else (found, {})
        content_type, encoding = meta.pop("content", _DEFAULT_TYPE)
        if compressed := meta.pop("compressed", None):
            payload = decompress(payload, compressed)
        body = loads(payload, content_type, encoding, accept=accept or {"application/json"})
        args, kwargs, *more = body
        embed = more[0] if more else None
        properties = meta.pop("properties", {})
        mappings = (headers, properties, kwargs, embed or {})
        if not isinstance(args, (list, tuple)) or not all(isinstance(m, dict) for m in mappings):
            raise TypeError("it is not a call")
        return Envelope(headers, (args, kwargs, embed), properties)
    except Exception as exc:
        raise CorruptEnvelope(f"the stored request cannot be decoded: {exc!r}") from exc


def text(value: Any) -> str:
    """Returns text for what Redis returned."""
    return str(bytes_to_str(value))
