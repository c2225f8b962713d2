"""Decompression that ends at a bound: few bytes may stand for more than a worker can hold."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

from kombu.compression import decompress, get_decoder

#: Where kombu finds the methods that not every Python has, and what decompresses step by step.
_MODULES = {
    "bz2": "BZ2Decompressor",
    "lzma": "LZMADecompressor",
    "compression.zstd": "ZstdDecompressor",
    "backports.zstd": "ZstdDecompressor",
}


def _steps() -> dict[Any, Callable[[], Any]]:
    """Returns what decompresses step by step, by the function that does it at once."""
    found: dict[Any, Callable[[], Any]] = {zlib.decompress: zlib.decompressobj}
    for name, kind in _MODULES.items():
        try:
            module: Any = import_module(name)
        except ImportError:
            continue
        found[module.decompress] = getattr(module, kind)
    return found


_STEPS = _steps()


def inflate(data: bytes, method: str, size: int) -> bytes:
    """Returns what was compressed, if it is as large as was said.

    Brotli, and methods that a program registered with kombu, cannot be stopped on the way.

    Args:
        data: Compressed bytes.
        method: How, as a content type of kombu's.
        size: Bytes of the result.

    Raises:
        ValueError: It has another size.
    """
    make = _STEPS.get(get_decoder(method))
    # One more than expected: 0 would mean any number.
    found = make().decompress(data, size + 1) if make else bytes(decompress(data, method))
    if len(found) != size:
        raise ValueError(f"it is not the {size:,} bytes that were compressed")
    return found
