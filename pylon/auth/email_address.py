"""E-mail addresses: which ones sign-in accepts, and which two of them are one mailbox.

`parse_email` returns an address in two forms. The *key* compares mailboxes: the local part in NFC
with its ASCII letters in lower case, and the domain as a lower-case A-label. The *text* is stored
in the user's row and receives mail: the same local part, and the domain as people read it.

Invariants: two addresses with one key receive mail in one mailbox. No other letters are folded,
because Unicode's lower case would merge mailboxes (ß and ss, the Turkish İ). Both forms have at
most `EMAIL_BYTES` bytes, no space and no control character, so that they fit into a header of a
mail. Parsing a key or a text again returns the same address. Nothing asks the DNS.

Called by the flows of sign-in and by `pylonctl`.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Final

from pylon.errors import InvalidEmail
from pylon.limits import EMAIL_BYTES

_TO_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_LOCALHOST: Final = "@localhost"
_STANDS_FOR_LOCALHOST: Final = "@localhost.example.com"
_REMEDY: Final = "Send one address such as name@example.com"


@dataclass(frozen=True, slots=True)
class EmailAddress:
    """A valid address. `key` compares mailboxes; `text` is stored, shown, and receives mail."""

    key: str
    text: str

    @property
    def local_part(self) -> str:
        """The part before the @."""
        return self.key.rpartition("@")[0]


def parse_email(raw: str, *, is_dev: bool = False) -> EmailAddress:
    """Return the address that somebody typed.

    Args:
        raw: the text; spaces around it are ignored.
        is_dev: whether the domains `localhost` and `*.test` are accepted too.

    Raises:
        InvalidEmail: it is no address, or one of a form that sign-in does not accept: with quotes,
            an IP address as domain, a domain without a dot, more than `EMAIL_BYTES` bytes.
    """
    # PERF: its import takes 0.05 s of CPU, and only the identity process parses addresses.
    from email_validator import EmailNotValidError, validate_email

    typed = raw.strip(" ")
    if len(typed) > EMAIL_BYTES:  # before the parser, whose work grows with the text
        raise _too_long()
    is_localhost = is_dev and typed[-len(_LOCALHOST):].translate(_TO_LOWER) == _LOCALHOST
    if is_localhost:
        typed = typed[: -len(_LOCALHOST)] + _STANDS_FOR_LOCALHOST
    try:
        found = validate_email(
            typed, check_deliverability=False, allow_smtputf8=True, allow_quoted_local=False,
            allow_domain_literal=False, allow_display_name=False, test_environment=is_dev,
        )
    except EmailNotValidError as ex:
        raise InvalidEmail(f"The e-mail address is not valid: {ex}", hint=_REMEDY) from None
    domain = (found.ascii_domain or "").lower()
    if "." not in domain:
        raise InvalidEmail("The domain of the e-mail address has no dot", hint=_REMEDY)
    local = found.local_part.translate(_TO_LOWER)
    if is_localhost:
        return EmailAddress(local + _LOCALHOST, local + _LOCALHOST)
    key, text = f"{local}@{domain}", f"{local}@{found.domain}"
    if max(len(key.encode()), len(text.encode())) > EMAIL_BYTES:
        raise _too_long()
    return EmailAddress(key, text)


def _too_long() -> InvalidEmail:
    return InvalidEmail(f"The e-mail address has more than {EMAIL_BYTES} bytes", hint=_REMEDY)
