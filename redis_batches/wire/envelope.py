"""A request as bytes and back.

An envelope is a version byte, a head as compact JSON, a newline, and the body as kombu's serializer
wrote it. The head has the headers that cannot be derived from the rest, if there are any; it is a
list of these and of properties, content type and compression, if there is more to say than headers,
which may have any name. Of a compressed body it tells the size, and no more than that is ever
decompressed. Lua never looks inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from kombu.compression import compress
from kombu.exceptions import ContentDisallowed, EncodeError
from kombu.serialization import dumps, loads
from kombu.serialization import registry as _registry  # type: ignore[attr-defined]
from kombu.utils import json as kombu_json
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import JSONEncoder, object_hook
from kombu.utils.json import loads as _kombu_loads

from redis_batches.core.errors import BatchesError, PayloadTooLarge
from redis_batches.core.printable import printable
from redis_batches.wire.compression import inflate

VERSION = b"1"
_JSON = "application/json"
_DEFAULT_TYPE = (_JSON, "utf-8")
#: `json.loads` makes one like it for every document; the hook gives dates, UUIDs and so on back.
_DECODER = json.JSONDecoder(object_hook=object_hook)
#: Bytes of headers that are worth remembering.
_CACHED_HEAD = 256


class UnknownEnvelope(BatchesError):
    """The envelope was written by a newer version of this package."""


class CorruptEnvelope(BatchesError):
    """The envelope cannot be decoded."""


@dataclass(slots=True)
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


def encode(
    envelope: Envelope,
    serializer: str | None,
    compression: str | None = None,
    limit: int | None = None,
) -> bytes:
    """Returns the bytes of an envelope.

    Raises:
        kombu.exceptions.EncodeError: The serializer cannot take the arguments.
        PayloadTooLarge: It takes more bytes than `limit`, compressed or not.
    """
    content_type, encoding, payload = _dump(envelope.body, serializer)
    content, properties = (content_type, encoding), envelope.properties
    return wrap(envelope.headers, payload, content, compression, properties, limit)


def wrap(
    headers: Mapping[str, Any],
    body: str | bytes,
    content: tuple[str, str],
    compression: str | None = None,
    properties: Mapping[str, Any] | None = None,
    limit: int | None = None,
) -> bytes:
    """Returns the bytes of an envelope whose body is serialized already.

    Args:
        headers: The message headers that cannot be derived from the rest.
        body: (args, kwargs, embed) as of Celery's message protocol 2, serialized.
        content: Its content type and its encoding.
        compression: What to compress it with, if anything.
        properties: The message properties that cannot be derived from the rest.
        limit: Bytes that it may take, also when it is decompressed; None for any number.

    Raises:
        kombu.exceptions.EncodeError: A header is not JSON.
        PayloadTooLarge: It takes more.
    """
    payload: Any = body.encode() if isinstance(body, str) else bytes(body)
    # Before it is compressed: that may take long, for nothing.
    _check_size(len(payload), limit)
    meta: dict[str, Any] = {"properties": properties} if properties else {}
    if content != _DEFAULT_TYPE:
        meta["content"] = list(content)
    if compression:
        size = len(payload)
        payload, method = compress(payload, compression)
        meta["compressed"] = [method, size]
    parts: Any = [headers, meta] if meta else headers
    try:
        head = json.dumps(parts, separators=(",", ":")).encode() if parts else b""
    except (TypeError, ValueError) as exc:
        raise EncodeError(f"the headers of the call are not JSON: {exc}") from exc
    data = b"%s%s\n%s" % (VERSION, head, payload)
    _check_size(max(len(data), held_size(data) or 0 if compression else 0), limit)
    return data


def _check_size(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise PayloadTooLarge(size, limit)


def held_size(data: bytes) -> int | None:
    """Returns the bytes that a worker will hold of an envelope; None if it is not compressed."""
    end = data.find(b"\n")
    head = json.loads(data[1:end]) if end > 1 else {}
    method = head[1].get("compressed") if isinstance(head, list) else None
    return end + 1 + int(method[1]) if method else None


def _dump(body: tuple[Any, Any, Any], serializer: str | None) -> tuple[str, str, bytes]:
    """Returns content type, encoding and bytes of (args, kwargs, embed)."""
    return _serialize((*body[:2], *_kept(body[2])), serializer)


def _serialize(body: tuple[Any, ...], serializer: str | None) -> tuple[str, str, bytes]:
    """Serializes as kombu does, which takes whatever comes meanwhile for an error of the body."""
    try:
        content_type, encoding, dumped = dumps(body, serializer=serializer)
    except EncodeError as exc:
        _let_pass(exc)
        raise
    return content_type, encoding, dumped.encode() if isinstance(dumped, str) else dumped


def _let_pass(exc: Exception) -> None:
    """Raises the soft time limit that came while kombu worked, if that is what it wrapped."""
    for cause in (exc, *exc.args):
        if isinstance(cause, SoftTimeLimitExceeded):
            raise cause


def _kept(embed: Any) -> tuple[Any, ...]:
    """Returns what of an embed a body holds: it itself, or nothing if all of it is empty."""
    return (embed,) if embed and any(embed.values()) else ()


class Encoder:
    """Encodes calls that have everything but their arguments in common, as `encode` would.

    Args:
        envelope: One of these calls.
        serializer: As of `encode`.
        compression: As of `encode`.
        limit: As of `encode`.
    """

    def __init__(
        self,
        envelope: Envelope,
        serializer: str | None,
        compression: str | None,
        limit: int | None = None,
    ) -> None:
        head, _, _ = encode(envelope, serializer).partition(b"\n")
        self._head = head + b"\n"
        self._envelope = envelope
        self._limit = limit
        self._embed = _kept(envelope.body[2])
        self._serializer = serializer
        self._compression = compression
        # kombu makes such an encoder at each call, which takes longer than the encoding.
        self._encode_json = JSONEncoder().encode if _is_kombus_json(serializer) else None

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Returns the bytes of a call.

        Raises:
            kombu.exceptions.EncodeError: The serializer cannot take the arguments.
            PayloadTooLarge: It takes more bytes than `limit`, compressed or not.
        """
        if self._compression:
            # The head tells the size, so each call has its own.
            call = replace(self._envelope, body=(args, kwargs, self._envelope.body[2]))
            return encode(call, self._serializer, self._compression, self._limit)
        body = (args, kwargs, *self._embed)
        data = self._head + (self._dump_json(body) if self._encode_json else self._dump(body))
        if self._limit is not None and len(data) > self._limit:
            raise PayloadTooLarge(len(data), self._limit)
        return data

    def _dump_json(self, body: Any) -> bytes:
        assert self._encode_json is not None
        try:
            return self._encode_json(body).encode()
        except SoftTimeLimitExceeded:
            raise
        except Exception:
            # Says what kombu says.
            return self._dump(body)

    def _dump(self, body: Any) -> bytes:
        return _serialize(body, self._serializer)[2]


def _is_kombus_json(serializer: str | None) -> bool:
    """Whether a serializer is kombu's own JSON, which nobody registered anew."""
    known = _registry._encoders.get("json")
    return serializer == "json" and known is not None and known.encoder is kombu_json.dumps


def decode(data: bytes, accept: set[str] | None, limit: int | None = None) -> Envelope:
    """Returns the envelope of some bytes.

    Args:
        data: What `encode` returned.
        accept: Content types that may be decoded, checked before anything is; None for JSON only.
        limit: Bytes that a compressed body may have; None for as many as its head says.

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
        found = _read_head(head) if head else {}
        headers, meta = found if isinstance(found, list) else (found, {})
        content_type, encoding = meta.pop("content", _DEFAULT_TYPE)
        if compressed := meta.pop("compressed", None):
            method, size = compressed
            if limit is not None and size > limit:
                raise ValueError(f"{size:,} bytes are compressed, and {limit:,} are allowed")
            payload = inflate(payload, method, size)
        args, kwargs, *more = _read_body(payload, content_type, encoding, accept or {_JSON})
        embed = more[0] if more else None
        properties = meta.pop("properties", {})
        # Not in a loop: this runs for every request.
        if not (
            isinstance(args, (list, tuple))
            and isinstance(kwargs, dict)
            and isinstance(headers, dict)
            and isinstance(properties, dict)
            and isinstance(embed or {}, dict)
        ):
            raise TypeError("it is not a call")
        return Envelope(headers, (args, kwargs, embed), properties)
    except Exception as exc:
        _let_pass(exc)
        # Not what was wrong: it may quote the arguments, as may what caused it.
        known = isinstance(exc, ContentDisallowed)
        why = printable(exc) if known else type(exc).__name__
    raise CorruptEnvelope(f"the stored request cannot be decoded ({why})")


def _read_head(head: bytes) -> Any:
    """Returns headers; most calls of a batch have the same ones, such as their `origin`."""
    flat = _read_flat_head(head) if len(head) <= _CACHED_HEAD else None
    return json.loads(head) if flat is None else dict(flat)


@lru_cache(maxsize=256)
def _read_flat_head(head: bytes) -> dict[str, Any] | None:
    """Returns headers of which a shallow copy is a copy, else None."""
    found = json.loads(head)
    if not isinstance(found, dict):
        return None
    return None if any(isinstance(value, (dict, list)) for value in found.values()) else found


def _read_body(payload: Any, content_type: str, encoding: str, accept: set[str]) -> Any:
    """Returns what kombu's serializer wrote; its own JSON without its detours, same hooks."""
    if content_type == _JSON and _JSON in accept and _registry._decoders.get(_JSON) is _kombu_loads:
        return _read_json(payload.decode())
    return loads(payload, content_type, encoding, accept=accept)


def _read_json(document: str) -> Any:
    """Returns what `decode` does, faster where no white space is around it."""
    try:
        found, end = _DECODER.raw_decode(document)
    except ValueError:
        end = -1
    return found if end == len(document) else _DECODER.decode(document)


def read_headers(data: bytes) -> dict[str, Any]:
    """Returns the headers of an envelope without its body; none if they cannot be read."""
    end = data.find(b"\n")
    try:
        found = json.loads(data[1:end]) if data[:1] == VERSION and end > 1 else {}
        headers = found[0] if isinstance(found, list) else found
    except (ValueError, LookupError, RecursionError):
        return {}
    return headers if isinstance(headers, dict) else {}


def text(value: Any) -> str:
    """Returns text for what Redis returned."""
    return str(bytes_to_str(value))
