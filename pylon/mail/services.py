"""Services: sends mails through an HTTP service, `webhook`, `resend` or `sendgrid`.

A webhook gets `{"to","from","subject","body","text","html"?}` with the bearer token
PYLON_EMAIL_API_KEY, as from the published server. The id of the mail is the Idempotency-Key, so a
service that honours it sends a repeated mail once.

PYLON_EMAIL_ENDPOINT is the webhook's URL; for the others it replaces the service's own, for example
https://api.eu.sendgrid.com/v3/mail/send.

Invariants: see `senders`. Redirects are not followed, since the request has the key. The answers
400, 413 and 422 mean that this mail will never be accepted; all others of 300 and more are tried
again. Called by `senders`.
"""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parseaddr
from typing import Any, Final

import msgspec
import urllib3

from pylon import __version__
from pylon.errors import EmailRefused, EmailSendFailed
from pylon.limits import MAIL_STEP_S
from pylon.mail.message import Mail

_ENDPOINTS: Final = {
    "resend": "https://api.resend.com/emails",
    "sendgrid": "https://api.sendgrid.com/v3/mail/send",
}
_FINAL: Final = frozenset({400, 413, 422})
_REPLY_BYTES: Final = 2_048


def service_sender(
    provider: str, sender: str, api_key: str | None, endpoint: str | None
) -> Callable[[Mail], None]:
    """Return the sender of mails through one service."""
    url = endpoint or _ENDPOINTS[provider]
    pool = urllib3.PoolManager(
        num_pools=1, maxsize=8, retries=False,
        timeout=urllib3.Timeout(connect=MAIL_STEP_S, read=MAIL_STEP_S),
    )
    headers = {"Content-Type": "application/json", "User-Agent": f"pylon/{__version__}"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    form = _FORMS[provider]

    def send(mail: Mail) -> None:
        body = msgspec.json.encode(form(mail, sender))
        try:
            answer = pool.request(
                "POST", url, body=body, redirect=False, preload_content=False,
                headers={**headers, "Idempotency-Key": mail.id},
            )
            try:
                reply = answer.read(_REPLY_BYTES, decode_content=True) or b""
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as ex:
            raise EmailSendFailed(
                f"the mail service {provider} cannot be reached", hint=str(ex)
            ) from None
        if answer.status >= 300:
            kind = EmailRefused if answer.status in _FINAL else EmailSendFailed
            raise kind(
                f"the mail service {provider} answered {answer.status}",
                hint=reply.decode("utf-8", "replace"),
            )

    return send


def _webhook_form(mail: Mail, sender: str) -> dict[str, Any]:
    form = {
        "to": mail.to, "from": sender, "subject": mail.subject, "body": mail.text,
        "text": mail.text,
    }
    return form if mail.html is None else {**form, "html": mail.html}


def _resend_form(mail: Mail, sender: str) -> dict[str, Any]:
    form = {
        "to": [mail.to], "from": sender, "subject": mail.subject, "text": mail.text,
        "headers": {"Auto-Submitted": "auto-generated"},
    }
    return form if mail.html is None else {**form, "html": mail.html}


def _sendgrid_form(mail: Mail, sender: str) -> dict[str, Any]:
    name, address = parseaddr(sender)
    content = [{"type": "text/plain", "value": mail.text}]
    if mail.html is not None:
        content.append({"type": "text/html", "value": mail.html})
    return {
        "personalizations": [{"to": [{"email": mail.to}]}],
        "from": {"email": address, "name": name} if name else {"email": address},
        "subject": mail.subject, "content": content,
        "headers": {"Auto-Submitted": "auto-generated"},
    }


_FORMS: Final = {"webhook": _webhook_form, "resend": _resend_form, "sendgrid": _sendgrid_form}
