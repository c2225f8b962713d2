"""A call as bytes and back, and what may be wrong with the bytes."""

from __future__ import annotations

import json
import pickle
import zlib
from datetime import date, datetime, timezone
from decimal import Decimal
from traceback import format_exception
from typing import Any
from uuid import UUID

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from hypothesis import example, given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError
from kombu.serialization import registry  # type: ignore[attr-defined]
from kombu.utils.json import loads

from redis_batches.core.errors import BatchesError
from redis_batches.wire.envelope import (
    VERSION,
    CorruptEnvelope,
    Encoder,
    Envelope,
    UnknownEnvelope,
    decode,
    encode,
    text,
)

PICKLE = "application/x-python-serialize"
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=20)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
CALLS = st.tuples(st.lists(JSON, max_size=3), st.dictionaries(st.text(max_size=5), JSON))


def envelope(*args: Any, embed: dict[str, Any] | None = None, **headers: Any) -> Envelope:
    """Returns an envelope."""
    return Envelope(headers, (list(args), {}, embed))


# -- There and back


@given(call=CALLS, headers=st.dictionaries(st.text(max_size=8), JSON, max_size=3))
def test_a_call_comes_back(call: tuple[list[Any], dict[str, Any]], headers: dict[str, Any]) -> None:
    """With its headers and its arguments."""
    there = Envelope(headers, (*call, None))

    assert decode(encode(there, "json"), None) == there


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_header_may_have_any_name(serializer: str) -> None:
    """Also one that the envelope has a use for itself."""
    headers = {"content": "ab", "compressed": True, "properties": 7, "priority": 3}
    there = Envelope(headers, ([1], {}, None), {"app_id": "shop"})

    assert decode(encode(there, serializer, "zlib"), {PICKLE, "application/json"}) == there


@pytest.mark.parametrize(
    "value",
    [
        datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), date(2026, 1, 2), Decimal("1.10"),
        UUID(int=7), b"bytes", b"\xff", {"__type__": "mine"}, {"a": [{"b": UUID(int=8)}]},
    ],
    ids=repr,
)  # fmt: skip
def test_a_value_that_only_kombus_json_knows_comes_back(value: Any) -> None:
    """As what kombu makes of it."""
    data = encode(envelope(value, origin="gen1@here"), "json")

    assert decode(data, None).body[0] == [value]
    assert decode(data, None).body[0] == loads(data.partition(b"\n")[2])[0]


def test_an_apps_own_json_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever registers another decoder for JSON gets what it makes of a call."""
    own = {**registry._decoders, "application/json": lambda data: [["mine"], {}]}
    monkeypatch.setattr(registry, "_decoders", own)

    assert decode(encode(envelope(1), "json"), None).body[0] == ["mine"]


def test_calls_share_no_headers() -> None:
    """What a function does to those of one call is not seen in the next, however alike they are."""
    data = encode(envelope(1, origin="gen1@here", stamps={"a": ["b"]}), "json")
    first, flat = decode(data, None), decode(encode(envelope(1, origin="gen1@here"), "json"), None)
    first.headers["stamps"]["a"].append("c")
    flat.headers["origin"] = "changed"

    assert decode(data, None).headers["stamps"] == {"a": ["b"]}
    assert decode(encode(envelope(1, origin="gen1@here"), "json"), None).headers == {
        "origin": "gen1@here"
    }


def test_what_lua_would_break_comes_back() -> None:
    """Numbers beyond 2**53, empty lists, line ends, any character."""
    there = envelope(9007199254740993, 10**40, 0.1, [], {}, "\r\n\x00", "日本 \U0001f600", 1e308)

    assert decode(encode(there, "json"), None) == there


def test_what_hangs_on_a_call_comes_back() -> None:
    """Links, chain and chord."""
    there = envelope(1, embed={"callbacks": [{"task": "t"}], "chain": None})

    assert decode(encode(there, "json"), None) == there


@pytest.mark.parametrize("serializer", ["json", "pickle"])
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2", "lzma"])
def test_every_serializer_and_compression(serializer: str, compression: str | None) -> None:
    """That kombu has by itself."""
    there = envelope("x" * 100, 1, key="value")
    back = decode(encode(there, serializer, compression), {PICKLE, "application/json"})

    assert back.headers == there.headers
    assert [list(back.body[0]), *back.body[1:]] == list(there.body)


def test_a_compressed_call_is_smaller() -> None:
    """That is what it is for."""
    large = envelope("x" * 10_000)

    assert len(encode(large, "json", "zlib")) < len(encode(large, "json")) / 10


def test_a_plain_call_is_compact() -> None:
    """A version, an empty line, and the body as JSON: nothing that the default says already."""
    assert encode(envelope("a", 1), "json") == b'1\n[["a", 1], {}]'
    assert encode(envelope(embed={"callbacks": None}), "json") == b"1\n[[], {}]"


def test_headers_are_compact() -> None:
    """Only those that the caller gives."""
    assert encode(envelope(retries=2), "json") == b'1{"retries":2}\n[[], {}]'


def test_the_callers_envelope_is_left_alone() -> None:
    """Though another content type is noted in the bytes."""
    there = envelope(1, retries=1)
    encode(there, "pickle", "zlib")

    assert there == envelope(1, retries=1)


def test_arguments_that_cannot_be_serialized() -> None:
    """The serializer says what it cannot take."""
    with pytest.raises(EncodeError, match="not JSON serializable"):
        encode(envelope(object()), "json")


def test_headers_that_cannot_be_serialized() -> None:
    """They are JSON, whatever the arguments are."""
    with pytest.raises(EncodeError, match="headers of the call are not JSON"):
        encode(envelope(1, stamp=object()), "pickle")


# -- What may not be decoded


class Bomb:
    """What a sender of pickles could do."""

    exploded = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Calls a function when it is loaded."""
        return setattr, (Bomb, "exploded", True)


def test_pickle_is_refused_unless_it_is_accepted() -> None:
    """It is not even looked at."""
    data = encode(envelope(Bomb()), "pickle")
    for accept in (None, set(), {"application/json"}):
        with pytest.raises(CorruptEnvelope, match="pickle"):
            decode(data, accept)
    assert not Bomb.exploded


def test_pickle_is_decoded_where_it_is_accepted() -> None:
    """Both ends have chosen it."""
    there = envelope({1, 2}, b"bytes")

    assert decode(encode(there, "pickle"), {PICKLE}).body[0] == [{1, 2}, b"bytes"]


def test_the_name_of_a_type_cannot_smuggle_another() -> None:
    """The type that stands in the bytes is the one that decodes, or none."""
    body = pickle.dumps(([Bomb()], {}))
    for content in ("application/json", "application/data", "text/plain", PICKLE, "x", ["y"], 7):
        meta = json.dumps([{}, {"content": [content, "binary"]}]).encode()
        with pytest.raises(CorruptEnvelope):
            decode(VERSION + meta + b"\n" + body, None)
    assert not Bomb.exploded


@pytest.mark.parametrize("version", [b"0", b"2", b"9"])
def test_an_unknown_version_is_not_corrupt(version: bytes) -> None:
    """A newer worker can read it: during a deploy both run."""
    with pytest.raises(UnknownEnvelope, match=f"version {version!r} is not known"):
        decode(version + b"whatever", None)


@pytest.mark.parametrize("body", [b" [[1],{}]", b"\n[[1], {}]\n", b"[[1],{}] "])
def test_white_space_around_a_body_is_json_too(body: bytes) -> None:
    """Programs in other languages may write it."""
    assert decode(b"1\n" + body, None).body == ([1], {}, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"x\n[[], {}]",
        b"1",
        b"1\n",
        b"1\nnull",
        b"1\n7",
        b'1\n"ab"',
        b"1\n[]",
        b"1\n[[]]",
        b"1\n[[], []]",
        b"1\n[{}, {}]",
        b"1\n[null, {}]",
        b'1\n["a", {}]',
        b"1\n[[], {}, 7]",
        b'1\n{"a": 1, "b": 2}',
        b"1[]\n[[], {}]",
        b"1null\n[[], {}]",
        b'1"content"\n[[], {}]',
        b"1[{}]\n[[], {}]",
        b"1[{},[]]\n[[], {}]",
        b"1[[],{}]\n[[], {}]",
        b"1[{},{},{}]\n[[], {}]",
        b'1[{},{"properties":7}]\n[[], {}]',
        b"1{\n[[], {}]",
        b'1[{},{"content":7}]\n[[], {}]',
        b'1[{},{"compressed":"no-such-method"}]\n[[], {}]',
        b'1[{},{"compressed":"application/x-gzip"}]\n[[], {}]',
        b'1[{},{"compressed":["a"]}]\n[[], {}]',
        b"1\n" + b"[" * 100_000,
        b"1" + b"[" * 100_000,
        b"1\n\xff\xfe",
        b"1\xff\n[[], {}]",
    ],
)
def test_bytes_that_are_no_call(data: bytes) -> None:
    """They are corrupt, and nothing else is raised."""
    with pytest.raises(CorruptEnvelope, match="the stored request"):
        decode(data, None)


@given(st.binary(max_size=100))
@example(b"1" + zlib.compress(b"x"))
def test_any_bytes_are_a_call_or_an_error_of_this_package(data: bytes) -> None:
    """No other error leaves."""
    decode_or_refuse(data)
    decode_or_refuse(VERSION + data)
    decode_or_refuse(VERSION + b"\n" + data)


@given(call=CALLS, cut=st.integers(0, 100), flip=st.integers(0, 100), to=st.integers(0, 255))
def test_a_damaged_call_is_a_call_or_an_error_of_this_package(
    call: tuple[list[Any], dict[str, Any]], cut: int, flip: int, to: int
) -> None:
    """Cut short, or with a byte changed; compressed or not."""
    for compression in (None, "zlib"):
        data = encode(Envelope({"retries": 1}, (*call, {"chain": [1]})), "json", compression)
        decode_or_refuse(data[:cut])
        place = flip % len(data)
        decode_or_refuse(data[:place] + bytes([to]) + data[place + 1 :])


def decode_or_refuse(data: bytes) -> None:
    """Checks that what is decoded has the form of a call."""
    try:
        found = decode(data, None)
    except (UnknownEnvelope, CorruptEnvelope):
        return
    args, kwargs, embed = found.body
    assert isinstance(found.headers, dict)
    assert isinstance(args, (list, tuple))
    assert isinstance(kwargs, dict)
    assert embed is None or isinstance(embed, dict)


def test_the_errors_are_this_packages_own() -> None:
    """Whoever catches one base catches them."""
    assert issubclass(UnknownEnvelope, BatchesError)
    assert issubclass(CorruptEnvelope, BatchesError)


@pytest.mark.parametrize("value", [b"abc", "abc"])
def test_text_is_what_redis_returned(value: bytes | str) -> None:
    """As text."""
    assert text(value) == "abc"


SECRET = "hunter2"


@pytest.mark.parametrize(
    "body",
    [
        f'[["{SECRET}"], {{}}'.encode(),
        f'[["{SECRET}'.encode() + b"\xff\xfe",
        f'[[{{"__type__": "datetime", "__value__": "{SECRET}"}}], {{}}]'.encode(),
        f'[[{{"__type__": "{SECRET}", "__value__": 1}}], {{}}]'.encode(),
        f'"{SECRET}"'.encode(),
    ],
    ids=["cut", "no text", "no date", "no type", "no call"],
)
@pytest.mark.parametrize("content", [b"", b'[{},{"content":["application/json","utf-8"]}]'])
def test_an_error_quotes_no_arguments(body: bytes, content: bytes) -> None:
    """Nor does what caused it, which a traceback shows, too: they may be secret."""
    with pytest.raises(CorruptEnvelope) as caught:
        decode(VERSION + content + b"\n" + body, None)

    assert SECRET not in "".join(format_exception(caught.value))
    assert SECRET not in repr(caught.value.__context__)


class Slow:
    """Is encoded, or decoded, for so long that the soft time limit comes."""

    def __json__(self) -> Any:
        raise SoftTimeLimitExceeded

    def __reduce__(self) -> Any:
        raise SoftTimeLimitExceeded


@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_a_soft_time_limit_while_arguments_are_encoded_passes(serializer: str) -> None:
    """It says nothing of the arguments: the task that calls has to see it."""
    envelope = Envelope({}, ((Slow(),), {}, None))

    with pytest.raises(SoftTimeLimitExceeded):
        encode(envelope, serializer)
    with pytest.raises(SoftTimeLimitExceeded):
        Encoder(Envelope(), serializer, None)((Slow(),), {})


def test_a_soft_time_limit_is_not_lost_when_a_second_try_succeeds() -> None:
    """It comes once."""
    tries: list[int] = []

    class Once:
        def __json__(self) -> int:
            tries.append(1)
            if len(tries) == 1:
                raise SoftTimeLimitExceeded
            return 5

    with pytest.raises(SoftTimeLimitExceeded):
        Encoder(Envelope(), "json", None)((Once(),), {})


def test_a_soft_time_limit_while_a_call_is_decoded_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is as good as it was."""

    def slow(_: Any) -> Any:
        raise SoftTimeLimitExceeded

    # One that is not kombu's own, so that kombu wraps what it raises.
    monkeypatch.setattr(registry, "_decoders", {**registry._decoders, "application/json": slow})
    with pytest.raises(SoftTimeLimitExceeded):
        decode(encode(Envelope({}, ((1,), {}, None)), "json"), None)
