"""Senders: carry one mail to the outside. PYLON_EMAIL_PROVIDER chooses one.

    console    prints the mail; for development
    file       writes the mail into a folder, as an .eml file
    smtp, webhook, resend, sendgrid    see `smtp` and `services`

A sender returns when the other side has accepted the mail. It raises EmailRefused if the other side
will never accept this mail, and EmailSendFailed if a later attempt may succeed.

Invariants: no error of a sender has an address, a subject or a text in its message; the reply of
the other side is in its hint, which only `pylonctl mail test` shows. Importing this module imports
no sender: the identity process and `pylonctl mail` load theirs. Called by them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pylon.config import Config
from pylon.errors import EmailSendFailed
from pylon.mail.message import Mail, mime_message

Sender: TypeAlias = Callable[[Mail], None]


def make_sender(config: Config) -> Sender | None:
    """Return the sender that the settings name; None if there is none. `console` is none outside
    dev mode, since a log is no mailbox."""
    provider = config.email_provider
    sender = sender_address(config)
    if provider == "console" and config.dev_mode:
        return lambda mail: _print_mail(mail, sender)
    if provider == "file":
        folder = Path(config.email_folder or "")
        return lambda mail: _write_mail(mail, sender, folder)
    if provider == "smtp":
        from pylon.mail import smtp

        return smtp.smtp_sender(config.email_smtp_url or "", sender)
    if provider in ("webhook", "resend", "sendgrid"):
        from pylon.mail import services

        return services.service_sender(
            provider, sender, config.email_api_key, config.email_endpoint
        )
    return None


def sender_address(config: Config) -> str:
    """Return the value of the header From."""
    return config.email_from or "noreply@localhost"


def _print_mail(mail: Mail, sender: str) -> None:
    line = "-" * 72
    sys.stderr.write(
        f"{line}\nmail {mail.kind} from {sender} to {mail.to}\nSubject: {mail.subject}\n\n"
        f"{mail.text.rstrip()}\n{line}\n"
    )
    sys.stderr.flush()


def _write_mail(mail: Mail, sender: str, folder: Path) -> None:
    path = folder / f"{mail.id}.eml"
    part = folder / f".{mail.id}.part"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(bytes(mime_message(mail, sender)))
        part.rename(path)
    except OSError as ex:
        raise EmailSendFailed(
            f"The folder of mails, {folder}, cannot be written: {ex.strerror}"
        ) from ex
