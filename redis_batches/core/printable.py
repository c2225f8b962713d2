"""Texts that others chose, in one line: a name must not forge lines of a log."""

from __future__ import annotations

#: Characters of a name that are shown.
MOST = 256


def printable(value: object) -> str:
    """Returns a text as it may be logged: escaped where it is not printable, and not too long."""
    text = value if isinstance(value, str) else str(value)
    if len(text) <= MOST and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:MOST])
    return shown if len(text) <= MOST else f"{shown}..."
