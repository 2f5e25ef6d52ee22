"""Message: one rendered mail, as the outbox keeps it and as a MIME message.

Invariants: the id of a mail is that of its row in the outbox, and makes its Message-ID, so a mail
that was sent twice after a crash is recognised by mailboxes. No header has a line break: addresses
have the form of `pylon.auth.email_address`, subjects that of `templates`. A repr shows neither
recipient nor text. Called by the senders and by `outbox`.
"""

from __future__ import annotations

import email.policy
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import format_datetime, parseaddr

import msgspec


class Mail(msgspec.Struct, frozen=True):
    """One mail. `to`: an address whose domain is an A-label; `made_at`: Unix seconds."""

    id: str
    kind: str
    to: str
    subject: str
    text: str
    made_at: int
    html: str | None = None

    def __repr__(self) -> str:
        return f"Mail(id={self.id!r}, kind={self.kind!r})"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Mail)


def encode(mail: Mail) -> bytes:
    """Return the form that the outbox seals."""
    return _encoder.encode(mail)


def decode(raw: bytes) -> Mail:
    """Return the mail that `encode` has encoded."""
    return _decoder.decode(raw)


def mime_message(mail: Mail, sender: str) -> EmailMessage:
    """Return the mail as a MIME message.

    Args:
        sender: PYLON_EMAIL_FROM.
    """
    message = EmailMessage(policy=email.policy.SMTP)
    domain = parseaddr(sender)[1].rpartition("@")[2] or "localhost"
    message["From"] = sender
    message["To"] = mail.to
    message["Subject"] = mail.subject
    message["Date"] = format_datetime(datetime.fromtimestamp(mail.made_at, UTC))
    message["Message-ID"] = f"<{mail.id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "All"
    message.set_content(mail.text)
    if mail.html is not None:
        message.add_alternative(mail.html, subtype="html")
    return message
