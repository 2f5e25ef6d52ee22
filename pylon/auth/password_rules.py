"""Rules of passwords: the form in which a password is hashed, and which new ones are refused.

`normal_password` returns the form of PRECIS OpaqueString (RFC 8265): NFC, every other space as the
ASCII space, no control characters. Two keyboards that compose a letter differently so give one
password. PRECIS refuses the invisible characters that join emoji (U+200D, the variation selectors,
the tags of flags); these are kept as they are, because people do use such emoji.

`PasswordRules.check` refuses a new password that is too short, too common (`common_passwords.txt`),
made of the app's name or of the address, or in a list of stolen ones. There are no
rules of composition.

Invariants: no password is in an error, a log or a repr. A password that was accepted once is
accepted at each later sign-in, because sign-in calls `normal_password` only.

Called by the flows of sign-in, in the identity process. `check` reads the disk when a list of
stolen passwords is configured: up to 40 short reads.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

from precis_i18n import get_profile

from pylon.auth.stolen_passwords import StolenPasswords, open_list, stolen_password
from pylon.config import Config
from pylon.errors import PasswordTooLong, WeakPassword
from pylon.limits import PASSWORD_BYTES
from pylon.manifest.model import Manifest

_COMMON: Final = Path(__file__).with_name("common_passwords.txt")
_OPAQUE: Final = get_profile("OpaqueString")
_JOINERS: Final = dict.fromkeys((0x200D, 0xFE0E, 0xFE0F, *range(0xE0020, 0xE0080)))
_OTHER_CHARS: Final = 8  # beside a known word: digits and signs that make no password of it
_LONGER: Final = "Use a longer password, for example four random words"


@dataclass(frozen=True, slots=True)
class PasswordRules:
    """The rules of a new password. `app_name`: as the manifest has it."""

    min_chars: int
    app_name: str
    stolen: StolenPasswords | None = None
    is_stolen_online: Callable[[str], bool] | None = None  # with PYLON_HIBP

    def check(self, normal: str, email: str | None = None) -> None:
        """Refuse a new password that others guess.

        Args:
            normal: the password as `new_password` returned it.
            email: the account's address.

        Raises:
            WeakPassword: the message says why.
            PwnedPassword: it is in the list of stolen passwords.
        """
        if len(normal) < self.min_chars:
            raise WeakPassword(f"The password has fewer than {self.min_chars} characters",
                               hint=_LONGER)
        folded = normal.casefold()
        if is_common(folded):
            raise WeakPassword("The password is one of the most common ones", hint=_LONGER)
        if _is_made_of(folded, self.app_name.casefold()):
            raise WeakPassword("The password is made of the app's name", hint=_LONGER)
        for word in () if email is None else (email, email.rpartition("@")[0]):
            if _is_made_of(folded, word.casefold()):
                raise WeakPassword("The password is made of the e-mail address", hint=_LONGER)
        if self.stolen is not None:
            self.stolen.check(normal)
        if self.is_stolen_online is not None and self.is_stolen_online(normal):
            raise stolen_password()


def password_rules(config: Config, manifest: Manifest) -> PasswordRules:
    """Return the rules of an app.

    Raises:
        StartRefused: PYLON_PWNED_FILE cannot be used.
    """
    stolen = None if config.pwned_file is None else open_list(Path(config.pwned_file))
    return PasswordRules(manifest.auth.password_min_chars, manifest.name, stolen)


def normal_password(raw: str) -> str | None:
    """Return the form of a password that is hashed, or None if no password can be this text."""
    if not raw or len(raw) > PASSWORD_BYTES or len(raw.encode("utf-8", "replace")) > PASSWORD_BYTES:
        return None
    visible = raw.translate(_JOINERS)
    try:
        normal: str = _OPAQUE.enforce(visible)
    except UnicodeError:
        return None
    if visible != raw:
        spaced = (" " if unicodedata.category(char) == "Zs" else char for char in raw)
        normal = unicodedata.normalize("NFC", "".join(spaced))
    return normal if len(normal.encode()) <= PASSWORD_BYTES else None


def new_password(raw: str) -> str:
    """Return the form of a new password that is hashed; `PasswordRules.check` comes after it.

    Raises:
        PasswordTooLong: it has more than `PASSWORD_BYTES` bytes.
        WeakPassword: it is empty, or has a control character or another that cannot be typed.
    """
    if len(raw) > PASSWORD_BYTES or len(raw.encode("utf-8", "replace")) > PASSWORD_BYTES:
        raise PasswordTooLong(f"The password has more than {PASSWORD_BYTES} bytes")
    normal = normal_password(raw)
    if normal is None:
        raise WeakPassword(
            "The password is empty or has a character that passwords cannot have",
            hint="Leave out tabs, line breaks and other control characters",
        )
    return normal


def is_common(folded: str) -> bool:
    """Whether a case-folded password is in the bundled list."""
    return b"\n" + folded.encode() + b"\n" in _common_passwords()


@lru_cache(maxsize=1)
def _common_passwords() -> bytes:
    # PERF: 0.14 MB and at most 0.1 ms for a search; a set of the lines takes 1.5 MB.
    return b"\n" + _COMMON.read_bytes()


def _is_made_of(folded: str, word: str) -> bool:
    """Whether a password is a word, alone or with a few digits and signs in or around it."""
    if folded == word:
        return True
    letters = "".join(filter(str.isalpha, folded))
    return (
        letters != "" and letters == "".join(filter(str.isalpha, word))
        and len(folded) - len(letters) <= _OTHER_CHARS
    )
