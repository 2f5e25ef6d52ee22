"""Names for people to read: of users, organisations, API keys and devices.

A name is stored in NFC, without spaces around it, and has 1 to `NAME_CHARS` characters. It holds no
control character, no line break, and no character that reverses the direction of the text after it,
because such a name could look like another one or break a line of a mail or a log. At least one of
its characters is visible.

Called by the flows of sign-in and of organisations.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from pylon.errors import InvalidName
from pylon.limits import NAME_CHARS

_DIRECTIONS: Final = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
_FORBIDDEN: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
_INVISIBLE: Final = frozenset({"Cf", "Cn", "Co", "Mn", "Me", "Zs"})
_BLANK_LETTERS: Final = frozenset("\u115f\u1160\u2800\u3164\uffa0")  # letters that show nothing


def clean_name(raw: str, what: str = "name") -> str:
    """Return a name as it is stored.

    Args:
        raw: what somebody typed.
        what: the field's name, for the error.

    Raises:
        InvalidName: it is empty, too long, or has a forbidden character.
    """
    if len(raw) > 8 * NAME_CHARS:  # before NFC, which may shorten it
        raise _too_long(what)
    name = unicodedata.normalize("NFC", raw).strip()
    for char in name:
        if char in _DIRECTIONS or unicodedata.category(char) in _FORBIDDEN:
            raise InvalidName(
                f"{what} has the character U+{ord(char):04X}, which names cannot have",
                hint="Send text of one line without control characters", field=what,
            )
    if len(name) > NAME_CHARS:
        raise _too_long(what)
    if not any(
        unicodedata.category(char) not in _INVISIBLE and char not in _BLANK_LETTERS
        for char in name
    ):
        raise InvalidName(f"{what} is empty", hint="Send at least one visible character",
                          field=what)
    return name


def _too_long(what: str) -> InvalidName:
    return InvalidName(f"{what} has more than {NAME_CHARS} characters",
                       hint=f"Send at most {NAME_CHARS} characters", field=what)
