"""Commands to copy into a shell."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable

from gatepruner.errors import visible


def shell_text(words: Iterable[str]) -> str:
    """A command in one line, in which a shell finds these words again.

    Words with control characters or marks of direction are written as bytes, `$'\\x1b'` (bash and
    zsh), so that a terminal into which the command is pasted does not act on them.
    """
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if visible(word) == word:
        return shlex.quote(word)
    letters = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f"$'{''.join(letters)}'"
