"""Which names a piece of Lua takes from outside, and which it gives: a linter in small."""

from __future__ import annotations

import re
from collections.abc import Iterator

_COMMENT = re.compile(r"--[^\n]*")
_TOKEN = re.compile(r"'[^'\n]*'|[A-Za-z_]\w*|\.\.\.?|[=~<>]=|\d[\w.]*|\S")
_WORDS = {
    *("and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in"),
    *("local", "nil", "not", "or", "repeat", "return", "then", "true", "until", "while"),
}


class Names:
    """The names of a chunk.

    Attributes:
        free: Those that it takes from outside.
        given: Those that it binds at its outermost level.
    """

    def __init__(self, code: str) -> None:
        self.free: set[str] = set()
        self._scopes: list[set[str]] = [set()]
        self._tokens = ["", *_TOKEN.findall(_COMMENT.sub("", code)), ""]
        self._brackets: list[str] = []
        self._loops = 0
        self._read()
        assert len(self._scopes) == 1, "its blocks do not match"
        self.given = self._scopes[0]

    def _read(self) -> None:
        place = 1
        while token := self._tokens[place]:
            if token in "({[":
                self._brackets.append(token)
            elif token in ")}]":
                self._brackets.pop()
            if token in ("local", "for", "function"):
                place = self._bind(place)
            elif token in _WORDS:
                self._block(token)
            elif re.match(r"[A-Za-z_]", token):
                self._take(place)
            place += 1

    def _block(self, word: str) -> None:
        """Opens and closes scopes; that of a `for` is open already."""
        if word in ("end", "else", "elseif"):
            self._scopes.pop()
        if word in ("then", "else") or (word == "do" and not self._loops):
            self._scopes.append(set())
        self._loops -= word == "do" and self._loops > 0

    def _take(self, place: int) -> None:
        before, token, after = self._tokens[place - 1 : place + 2]
        is_field = self._brackets[-1:] == ["{"] and before in ("{", ",") and after == "="
        if before != "." and not is_field and not any(token in scope for scope in self._scopes):
            self.free.add(token)

    def _bind(self, place: int) -> int:
        """Reads the names that are bound; returns the place of the last."""
        word = self._tokens[place]
        if word == "function":
            return self._function(place)
        if self._tokens[place + 1] == "function":
            return place
        names = [*self._names(place + 1)]
        if word == "for":
            self._scopes.append(set())
            self._loops += 1
        self._scopes[-1].update(names)
        return place + 2 * len(names) - 1

    def _names(self, place: int) -> Iterator[str]:
        """Yields names with commas between."""
        yield self._tokens[place]
        while self._tokens[place + 1] == ",":
            place += 2
            yield self._tokens[place]

    def _function(self, place: int) -> int:
        """Opens the scope of a function; returns the place behind its parameters."""
        if self._tokens[place + 1] != "(":
            place += 1
            self._scopes[-1].add(self._tokens[place])
        end = self._tokens.index(")", place)
        self._scopes.append({*self._tokens[place + 2 : end]} - {","})
        return end
