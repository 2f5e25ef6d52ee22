"""Kinds of mail: the table of everything that sign-in sends, with variables and built-in texts.

A template names a variable as `{{name}}`. The variables of `COMMON` exist in every kind: the app's
name, the minutes until the content expires, the recipient's address. A *needed* variable must occur
in the text, because a mail without its code or link is of no use.

Invariants: names are unique; a built-in text uses all needed variables and no unknown ones.
Called by `templates`, `outbox` and `pylonctl mail`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

COMMON: Final = ("app", "minutes", "email")
SAMPLES: Final = {
    "app": "my-app", "minutes": "15", "email": "ann@example.com", "code": "123456",
    "url": "https://app.example.com/a-link?token=sample", "org_name": "Example Ltd",
    "inviter": "Ben", "device": "Firefox on Linux", "time": "2026-11-28 10:00 UTC",
    "name": "My phone",
    "new_email": "ann@new.example.com",
}
_NOT_YOU: Final = "If you did not ask for this, ignore this mail.\n"


@dataclass(frozen=True, slots=True)
class MailKind:
    """A kind of mail. `needs` and `may`: the variables that its text must or may use."""

    name: str
    subject: str
    text: str
    needs: tuple[str, ...] = ()
    may: tuple[str, ...] = ()

    @property
    def variables(self) -> frozenset[str]:
        """Return the names of all variables."""
        return frozenset((*self.needs, *self.may, *COMMON))


KINDS: Final[tuple[MailKind, ...]] = (
    MailKind(
        "MAGIC_CODE", "Your code for {{app}}: {{code}}",
        "Your code to sign in to {{app}}:\n\n    {{code}}\n\n"
        f"It works for {{{{minutes}}}} minutes, once. Give it to nobody.\n{_NOT_YOU}",
        needs=("code",),
    ),
    MailKind(
        "VERIFY_EMAIL", "Confirm your address for {{app}}",
        "Your code to confirm the address {{email}} for {{app}}:\n\n    {{code}}\n\n"
        f"It works for {{{{minutes}}}} minutes, once.\n{_NOT_YOU}",
        needs=("code",),
    ),
    MailKind(
        "MAGIC_LINK", "Sign in to {{app}}",
        "Open this link to sign in to {{app}}:\n\n{{url}}\n\n"
        f"It works for {{{{minutes}}}} minutes, once.\n{_NOT_YOU}",
        needs=("url",),
    ),
    MailKind(
        "PASSWORD_RESET", "Set a new password for {{app}}",
        "Open this link to set a new password for {{app}}:\n\n{{url}}\n\n"
        f"It works for {{{{minutes}}}} minutes, once. Your password stays as it is until then.\n"
        f"{_NOT_YOU}",
        needs=("url",),
    ),
    MailKind(
        "EMAIL_CHANGE", "Confirm your new address for {{app}}",
        "Open this link to make {{email}} the address of your account at {{app}}:\n\n{{url}}\n\n"
        f"It works for 24 hours, once.\n{_NOT_YOU}",
        needs=("url",),
    ),
    MailKind(
        "ORG_INVITE", "{{inviter}} invites you to {{org_name}} on {{app}}",
        "{{inviter}} invites you to join {{org_name}} on {{app}}. Open this link to join:\n\n"
        "{{url}}\n\nIt works for 7 days.\n"
        "If you do not know them, ignore this mail.\n",
        needs=("url",), may=("org_name", "inviter"),
    ),
    MailKind(
        "EMAIL_CHANGE_REQUESTED", "Your address for {{app}} is to change",
        "Somebody who is signed in to your account at {{app}} asked to change its address to "
        "{{new_email}}.\n\nIf it was not you, change your password now.\n",
        may=("new_email",),
    ),
    MailKind(
        "EMAIL_CHANGED", "Your address for {{app}} has changed",
        "The address of your account at {{app}} is no longer {{email}}.\n\n"
        "If you did not do this, open this link within 72 hours to get your account back:\n\n"
        "{{url}}\n",
        needs=("url",),
    ),
    MailKind(
        "PASSWORD_CHANGED", "Your password for {{app}} has changed",
        "The password of your account {{email}} at {{app}} has changed, and its other sessions "
        "have ended.\n\nIf it was not you, set a new password with \"forgot password\".\n",
    ),
    MailKind(
        "NEW_DEVICE", "A new sign-in to {{app}}",
        "Somebody signed in to your account {{email}} at {{app}}:\n\n    {{device}}\n    {{time}}\n"
        "\nIf it was not you, change your password.\n",
        may=("device", "time"),
    ),
    MailKind(
        "PASSKEY_ADDED", "A new passkey for {{app}}",
        "A passkey ({{name}}) was added to your account {{email}} at {{app}}. It signs in without "
        "a password.\n\nIf it was not you, sign in, delete it and change your password.\n",
        may=("name",),
    ),
    MailKind(
        "PASSKEY_REMOVED", "A passkey for {{app}} was removed",
        "A passkey ({{name}}) of your account {{email}} at {{app}} was removed. It signs in no "
        "more.\n\nIf it was not you, change your password.\n",
        may=("name",),
    ),
    MailKind(
        "ACCOUNT_EXISTS", "You have an account at {{app}} already",
        "Somebody, probably you, wanted to sign up at {{app}} with {{email}}. You have an account "
        "with this address. To set a new password, open:\n\n{{url}}\n\n"
        f"{_NOT_YOU}",
        may=("url",),
    ),
    MailKind(
        "CREDENTIALS_DROPPED", "Your account at {{app}} was made safe",
        "You have just shown that {{email}} is yours. Somebody had used the address at {{app}} "
        "before without showing that. So the password, the linked accounts and the API keys from "
        "then no longer work, and their sessions have ended.\n\n"
        "If that was you, set a new password with \"forgot password\".\n",
    ),
)
KIND_BY_NAME: Final = {kind.name: kind for kind in KINDS}
