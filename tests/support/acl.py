"""The rights that the documentation gives to users of the server."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "operations.md"


def rights(namespace: str = "celery", commands: slice = slice(None)) -> list[str]:
    """Returns the documented ACL rules, word by word, as a shell reads them.

    Args:
        namespace: Takes the place of the documented one.
        commands: Which of the documented commands; the first is for everybody.
    """
    text = DOCUMENT.read_text().replace("\\\n", " ")
    found = re.findall(r"^redis-cli ACL SETUSER rb-app (.*)$", text, re.MULTILINE)
    assert len(found) == 4
    words = [word for command in found[commands] for word in shlex.split(command)]
    return [
        word.replace("{celery", "{" + namespace).replace(">SECRET", ">secret") for word in words
    ]
