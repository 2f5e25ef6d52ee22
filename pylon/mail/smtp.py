"""SMTP: sends mails through the server of PYLON_EMAIL_SMTP_URL.

`smtps://user:password@host:465` speaks TLS from the start. `smtp://user:password@host:587` uses
STARTTLS, and sends nothing to a server that does not offer it, because somebody between could have
removed the offer. Only a server on this machine (a loopback address) is spoken to in clear.
Certificates are checked; OpenSSL's SSL_CERT_FILE names further authorities.

Each mail has a connection of its own. Every wait of it ends after `MAIL_STEP_S`; the whole attempt
is limited by the identity process.

Invariants: see `senders`. The reply 5xx to the recipient or to the text means that this mail will
never be accepted; a 5xx to the sign-in or to the sender's address is the operator's to mend, so
such a mail is tried again. Called by `senders`.
"""

from __future__ import annotations

import ipaddress
import smtplib
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parseaddr
from urllib.parse import unquote, urlsplit

from pylon.errors import EmailRefused, EmailSendFailed
from pylon.limits import MAIL_STEP_S
from pylon.mail.message import Mail, mime_message


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """The place of an SMTP server, and the sign-in there."""

    host: str
    port: int
    is_tls: bool  # from the start
    user: str | None = None
    password: str = field(default="", repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


def parse_smtp_url(url: str) -> SmtpServer:
    """Return the server of a URL that `pylon.setting_values.smtp_url` has accepted."""
    parts = urlsplit(url)
    is_tls = parts.scheme.lower() == "smtps"
    return SmtpServer(
        parts.hostname or "", parts.port or (465 if is_tls else 587), is_tls,
        None if parts.username is None else unquote(parts.username), unquote(parts.password or ""),
    )


def smtp_sender(url: str, sender: str) -> Callable[[Mail], None]:
    """Return the sender of mails through one server."""
    server = parse_smtp_url(url)
    context = ssl.create_default_context()
    return lambda mail: send_by_smtp(mail, server, sender, context)


def send_by_smtp(mail: Mail, server: SmtpServer, sender: str, context: ssl.SSLContext) -> None:
    """Send one mail.

    Raises:
        EmailRefused, EmailSendFailed: see `senders`.
    """
    where = f"the SMTP server {server.host}:{server.port}"
    try:
        with _connect(server, context) as client:
            _sign_in(client, server, context)
            client.send_message(
                mime_message(mail, sender), parseaddr(sender)[1], [mail.to]
            )
    except smtplib.SMTPRecipientsRefused as ex:
        code, reply = next(iter(ex.recipients.values()))
        raise _refused(f"{where} refused the recipient", code, reply) from None
    except smtplib.SMTPDataError as ex:
        raise _refused(f"{where} refused the text", ex.smtp_code, ex.smtp_error) from None
    except smtplib.SMTPNotSupportedError as ex:
        raise EmailRefused(f"{where} cannot carry this address", hint=str(ex)) from None
    except smtplib.SMTPAuthenticationError as ex:
        raise EmailSendFailed(
            f"{where} refused the sign-in with {ex.smtp_code}", hint=_text(ex.smtp_error)
        ) from None
    except smtplib.SMTPResponseException as ex:
        raise EmailSendFailed(
            f"{where} answered {ex.smtp_code}", hint=_text(ex.smtp_error)
        ) from None
    except ssl.SSLCertVerificationError as ex:
        raise EmailSendFailed(
            f"the certificate of {where} is not valid: {ex.verify_message}"
        ) from None
    except (smtplib.SMTPException, OSError) as ex:
        raise EmailSendFailed(f"{where} cannot be reached", hint=str(ex)) from None


def _connect(server: SmtpServer, context: ssl.SSLContext) -> smtplib.SMTP:
    if server.is_tls:
        return smtplib.SMTP_SSL(server.host, server.port, timeout=MAIL_STEP_S, context=context)
    return smtplib.SMTP(server.host, server.port, timeout=MAIL_STEP_S)


def _sign_in(client: smtplib.SMTP, server: SmtpServer, context: ssl.SSLContext) -> None:
    client.ehlo_or_helo_if_needed()
    if not server.is_tls and not server.is_loopback:
        if not client.has_extn("starttls"):
            raise EmailSendFailed(
                f"the SMTP server {server.host}:{server.port} does not offer STARTTLS, so nothing "
                "was sent", hint="use smtps:// and its port, or a server that encrypts",
            )
        client.starttls(context=context)
        client.ehlo()
    if server.user is not None:
        client.login(server.user, server.password)


def _refused(message: str, code: int, reply: bytes | str) -> EmailRefused | EmailSendFailed:
    kind = EmailRefused if 500 <= code < 600 else EmailSendFailed
    return kind(f"{message} with {code}", hint=_text(reply))


def _text(reply: bytes | str) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
