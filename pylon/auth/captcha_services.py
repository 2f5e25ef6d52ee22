"""Services of captchas: where one is asked, and how the sign-in page shows it (PYLON_CAPTCHA_*).

Turnstile and hCaptcha speak the same protocol, "siteverify": the page's widget gets a token, and a
server asks the service whether the token is good, once. So a service is a row of this table, and
the two URLs may be those of another service with that protocol.

Called by the sign-in page, `pylon.setting_checks` and `workers.identity.captcha`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pylon.auth.origin import origin_of
from pylon.config import Config


@dataclass(frozen=True, slots=True)
class CaptchaService:
    """A service.

    Attributes:
        verify_url: for servers.
        script_url: of the widget.
        sources: the origins of its scripts, frames and styles, for a Content-Security-Policy.
        widget: the class of the element that its script looks for.
        field: of a form, into which the script writes the token.
    """

    verify_url: str
    script_url: str
    sources: str
    widget: str
    field: str


SERVICES: Final = {
    "turnstile": CaptchaService(
        "https://challenges.cloudflare.com/turnstile/v0/siteverify",
        "https://challenges.cloudflare.com/turnstile/v0/api.js",
        "https://challenges.cloudflare.com", "cf-turnstile", "cf-turnstile-response",
    ),
    "hcaptcha": CaptchaService(
        "https://api.hcaptcha.com/siteverify", "https://js.hcaptcha.com/1/api.js",
        "https://hcaptcha.com https://*.hcaptcha.com", "h-captcha", "h-captcha-response",
    ),
}


def captcha_service(config: Config) -> CaptchaService | None:
    """Return the service that the settings name; None if there is none."""
    known = SERVICES.get(config.captcha_provider or "")
    if known is None:
        return None
    script_url = config.captcha_script_url
    return CaptchaService(
        config.captcha_verify_url or known.verify_url, script_url or known.script_url,
        origin_of(script_url) if script_url else known.sources, known.widget, known.field,
    )
