"""Mail outbox: the operations by which a flow sends mail.

A flow puts the operation of `Mails.put` into the transaction that makes the code or link. So the
mail exists exactly if the code exists, and no request waits for a mail server. The identity process
sends it after the commit (`workers.identity.mail_delivery`), at least once.

Invariants: the row holds the rendered mail sealed, so a reader of the database learns no code. At
most `MAILS_WAITING` mails wait: beyond it `put` refuses. Called by the flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pylon import limits
from pylon.auth.email_address import parse_email
from pylon.auth.keys import Keys
from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.errors import EmailNotConfigured, InvalidEmail, Unavailable
from pylon.mail.message import Mail, encode
from pylon.mail.templates import Template
from pylon.storage.auth_ops import PutRecord

TABLE: Final = "outbox"
SEALED: Final = "sealed"
_ID_BYTES: Final = 16


class Mails:
    """Makes mails of one app. One for each process."""

    def __init__(
        self, templates: Mapping[str, Template], app_name: str, keys: Keys, clock: Clock,
        random: RandomSource, *, is_configured: bool, is_dev: bool = False,
    ) -> None:
        """Args: `is_configured`: there is a sender."""
        self._templates = templates
        self._app_name = app_name
        self._keys = keys
        self._clock = clock
        self._random = random
        self._is_dev = is_dev
        self.is_configured = is_configured
        self.waiting = 0  # rows of the outbox; the delivery sets it

    def put(self, kind: str, to: str, life_s: int, **values: str) -> PutRecord:
        """Return the operation that sends a mail, for the transaction that makes its content.

        Args:
            kind: a name of `pylon.mail.kinds`.
            to: the stored address, never the one that somebody typed.
            life_s: the seconds for which the content is valid; later the mail is not sent.
            values: of the kind's variables; those of all mails are added.

        Raises:
            EmailNotConfigured: there is no sender.
            Unavailable: too many mails wait.
        """
        if not self.is_configured:
            raise EmailNotConfigured(
                "This server sends no mail: PYLON_EMAIL_PROVIDER is not set",
                hint="Set PYLON_EMAIL_PROVIDER, then try pylonctl mail test ADDRESS",
            )
        if self.waiting >= limits.MAILS_WAITING:
            raise Unavailable(
                f"Too many mails wait to be sent (limit {limits.MAILS_WAITING})",
                hint="Try again in a minute",
            )
        address = parse_email(to, is_dev=self._is_dev)
        rendered = self._templates[kind].render({
            "app": self._app_name, "minutes": str(max(1, life_s // 60)), "email": address.text,
            **values,
        })
        now_s = self._clock.wall_ns() // NS_PER_S
        mail = Mail(
            self._random.token_hex(_ID_BYTES), kind, address.key, rendered.subject, rendered.text,
            now_s, rendered.html,
        )
        return PutRecord(TABLE, {
            "id": mail.id, "sealed": self._keys.seal(TABLE, SEALED, mail.id, encode(mail)),
            "created_at": now_s, "next_at": now_s, "attempts": 0, "expires_at": now_s + life_s,
        })

    def notices(self, kind: str, to: str, **values: str) -> list[PutRecord]:
        """Return the operations that send a notice: one, or none if mail cannot be sent now. A
        notice stops no flow."""
        try:
            return [self.put(kind, to, limits.MAIL_NOTICE_S, **values)]
        except (EmailNotConfigured, InvalidEmail, Unavailable):
            return []
