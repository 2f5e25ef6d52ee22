"""Captchas: asks the service of PYLON_CAPTCHA_PROVIDER whether a person has sent a request.

Routes that make accounts or send mails to strangers ask for one: anybody may call them, and each
call costs a mailbox or a row. The widget of the app's page gives a token, which the body has as
`captcha`. The service counts a token once.

Invariants: each question spends a unit of the address first (`VERIFY_IP`), so nobody floods the
service through this server. Without an answer the request gets 503, since a service that can be
kept away would protect nothing. Neither the token nor the secret reaches a log. Called by the flows
before anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pylon import log
from pylon.auth.captcha_services import captcha_service
from pylon.auth.transactions import carry_out
from pylon.config import Config
from pylon.errors import CaptchaFailed, CaptchaRequired, Unavailable
from pylon.limits import CAPTCHA_CHARS
from workers.identity.identity import Call, Identity
from workers.identity.providers.fetch import Fetcher, FetchFailed
from workers.identity.rates import VERIFY_IP, take_rates

_log = log.get_logger("identity")


@dataclass(frozen=True, slots=True)
class CaptchaCheck:
    """The question to one service."""

    url: str
    secret: str = field(repr=False)
    fetcher: Fetcher = field(repr=False)

    def is_good(self, token: str, address: str) -> bool:
        """Return whether the service has given this token to the client of an address.

        Raises:
            Unavailable: the service does not answer, or refuses this server.
        """
        try:
            answer = self.fetcher.fetch(self.url, form={
                "secret": self.secret, "response": token, "remoteip": address,
            }).json_object()
        except FetchFailed as ex:
            _log.warning("captcha.unreachable", reason=str(ex))
            raise _away() from None
        codes = answer.get("error-codes")
        if isinstance(codes, list) and {"missing-input-secret", "invalid-input-secret"} & {
            code for code in codes if isinstance(code, str)
        }:
            _log.error("captcha.refused", reason="the service does not know PYLON_CAPTCHA_SECRET")
            raise _away()
        return answer.get("success") is True


def make_captcha(config: Config) -> CaptchaCheck | None:
    """Return the question that the settings ask for; None: no captchas."""
    service = captcha_service(config)
    if service is None:
        return None
    return CaptchaCheck(
        service.verify_url, config.captcha_secret or "", Fetcher(allows_private=config.dev_mode)
    )


def require_captcha(identity: Identity, call: Call, token: str | None) -> None:
    """Check the captcha of a request, if this server asks for one.

    Args:
        token: of the body.

    Raises:
        CaptchaRequired: there is none.
        CaptchaFailed: the service did not give it, or it was used before.
        RateLimited, Unavailable
    """
    if identity.captcha is None:
        return
    if not token:
        raise CaptchaRequired(
            "This request needs a captcha",
            hint='Show the widget, and send its token as "captcha"', field="captcha",
        )
    steps = take_rates(identity, (VERIFY_IP, call.facts.address))
    if steps:
        carry_out(identity.writer.submit, steps)
    if len(token) > CAPTCHA_CHARS or not identity.captcha.is_good(token, call.facts.address):
        raise CaptchaFailed(
            "The captcha was not solved, or was used before", hint="Solve another one",
            field="captcha",
        )


def _away() -> Unavailable:
    return Unavailable("The captcha cannot be checked now", hint="Try again in a moment")
