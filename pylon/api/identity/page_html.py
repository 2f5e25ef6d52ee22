"""HTML of the sign-in page: forms and messages, which work without any script.

Invariants: every value of a request is escaped. The headers allow no frame, no resource and no
script but the file of the button for passkeys, where a page has it; forms go to this server, and a
redirect behind them to a checked page only. The text of
the style is fixed at the start, so its digest is in the headers, and no other style counts. Two
colours of the operator are its CSS variables `--accent` and `--surface`; the colours of texts on
them are black or white, whichever has more contrast. Called by `sign_in_page`.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from pylon.auth.captcha_services import CaptchaService
from pylon.auth.origin import origin_of

FieldKind = Literal["email", "password", "new-password", "name", "code", "check", "hidden"]

_INPUTS: Final[dict[FieldKind, str]] = {
    "email": 'type="email" autocomplete="username webauthn" maxlength="320" required',
    "password": 'type="password" autocomplete="current-password" required',
    "new-password": 'type="password" autocomplete="new-password" required',
    "name": 'type="text" autocomplete="name" maxlength="200"',
    "code": 'type="text" autocomplete="one-time-code" maxlength="40" required',
}
_KEPT: Final = frozenset({"email", "name", "hidden"})  # shown again after an error
_STYLE: Final = """
:root{--accent:%(accent)s;--surface:%(surface)s}
*{box-sizing:border-box}
body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--surface);
color:%(text)s;font:16px/1.5 system-ui,sans-serif}
main{width:min(24rem,100vw);padding:1.5rem}
h1{font-size:1.5rem;margin:0 0 1rem}
label{display:block;margin-top:1rem;font-weight:600}
input:not([type=checkbox]){display:block;width:100%%;margin-top:.25rem;padding:.6rem;font:inherit;
color:inherit;background:transparent;border:1px solid currentColor;border-radius:.4rem}
button{width:100%%;margin-top:1.5rem;padding:.7rem;font:inherit;font-weight:600;cursor:pointer;
border:0;border-radius:.4rem;background:var(--accent);color:%(on_accent)s}
:focus-visible{outline:3px solid var(--accent);outline-offset:2px}
.widget{margin-top:1rem}
.error{margin:0;padding:.7rem;border-left:4px solid #c62828;font-weight:600}
form[hidden]{display:none}
form+form button{margin-top:.75rem;background:transparent;color:inherit;
border:2px solid var(--accent)}
nav{margin-top:1.5rem}
nav a{display:block;padding:.25rem 0;color:inherit}
.providers a{margin-top:.75rem;padding:.6rem;text-align:center;text-decoration:none;font-weight:600;
border:2px solid currentColor;border-radius:.4rem}
"""


@dataclass(frozen=True, slots=True)
class Field:
    """An input of a form. `name` is also the member of the body."""

    name: str
    label: str
    kind: FieldKind


@dataclass(frozen=True, slots=True)
class Link:
    """A link to another form."""

    text: str
    href: str


class PageStyle:
    """The style of all pages of a process, and the headers that go with it."""

    __slots__ = ("_digest", "text")

    def __init__(self, accent: str, surface: str) -> None:
        """Args: colours as ``#rrggbb``."""
        self.text = _STYLE % {
            "accent": accent, "surface": surface, "text": _text_on(surface),
            "on_accent": _text_on(accent),
        }
        digest = hashlib.sha256(self.text.encode()).digest()
        self._digest = base64.b64encode(digest).decode()

    def headers(
        self, next_page: str, *, has_script: bool = False, widget_sources: str = ""
    ) -> tuple[tuple[str, str], ...]:
        """Return the headers of a page whose form may lead to `next_page`, which is checked.

        Browsers hold a redirect behind a form for the target of the form.

        Args:
            has_script: the page has the button for passkeys, whose script asks this server.
            widget_sources: the origins of a captcha's scripts, frames and styles.
        """
        origin = origin_of(next_page)
        targets = "'self'" if origin == "null" else f"'self' {origin}"
        sources = " ".join(["'self'"] * has_script + [widget_sources] * bool(widget_sources))
        frames = f"frame-src {widget_sources}; " if widget_sources else ""
        return (
            ("content-security-policy",
             f"default-src 'none'; style-src 'sha256-{self._digest}' {widget_sources}".rstrip()
             + "; " + (f"script-src {sources}; connect-src {sources}; " if sources else "") + frames
             + f"form-action {targets}; frame-ancestors 'none'; base-uri 'none'"),
            ("x-robots-tag", "noindex"),
            ("cache-control", "no-store"),
        )


def form_html(
    action: str, fields: Sequence[Field], button: str, values: Mapping[str, str], *,
    has_error: bool, widget: str = "",
) -> str:
    """Return a form. `values` are shown where the field may keep one. `widget` is HTML, above the
    button."""
    parts = []
    for number, field in enumerate(fields):
        value = html.escape(values.get(field.name, ""))
        name = html.escape(field.name)
        if field.kind == "hidden":
            parts.append(f'<input type="hidden" name="{name}" value="{value}">')
        elif field.kind == "check":
            parts.append(
                f'<label><input type="checkbox" name="{name}" value="true"> '
                f"{html.escape(field.label)}</label>"
            )
        else:
            kept = f' value="{value}"' if field.kind in _KEPT and value else ""
            wrong = ' aria-describedby="error"' if has_error else ""
            focus = " autofocus" if number == 0 else ""
            parts.append(
                f'<label for="{name}">{html.escape(field.label)}</label>'
                f'<input id="{name}" name="{name}" {_INPUTS[field.kind]}{kept}{wrong}{focus}>'
            )
    return (
        f'<form method="post" action="{html.escape(action)}">{"".join(parts)}{widget}'
        f"<button>{html.escape(button)}</button></form>"
    )


def captcha_html(service: CaptchaService, site_key: str) -> str:
    """Return the element into which the script of a service puts its widget."""
    return (
        f'<div class="widget {html.escape(service.widget)}" '
        f'data-sitekey="{html.escape(site_key)}"></div>'
        "<noscript><p>This form needs a script of the captcha.</p></noscript>"
    )


def page_html(
    style: PageStyle, title: str, *, error: str = "", text: str = "", form: str = "",
    links: Sequence[Link] = (), scripts: Sequence[str] = (), providers: Sequence[Link] = (),
) -> bytes:
    """Return a whole page. `form` is HTML, `scripts` are URLs, all else is text."""
    body = f"<h1>{html.escape(title)}</h1>"
    if error:
        body += f'<p id="error" class="error" role="alert">{html.escape(error)}</p>'
    if text:
        body += f"<p>{html.escape(text)}</p>"
    body += form + _nav("Providers", providers, "providers") + _nav("Other ways", links)
    name = f"Error: {title}" if error else title
    loads = "".join(f'<script src="{html.escape(url)}" defer></script>' for url in scripts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(name)}</title><style>{style.text}</style>{loads}</head>"
        f"<body><main>{body}</main></body></html>\n"
    ).encode()


def _nav(label: str, links: Sequence[Link], kind: str = "") -> str:
    if not links:
        return ""
    items = "".join(
        f'<a href="{html.escape(link.href)}">{html.escape(link.text)}</a>' for link in links
    )
    named = f' class="{kind}"' if kind else ""
    return f'<nav{named} aria-label="{label}">{items}</nav>'


def _text_on(colour: str) -> str:
    """Return black or white, whichever has more contrast (WCAG 2.2) with a colour."""
    parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return "#000000" if (luminance + 0.05) ** 2 > 0.0525 else "#ffffff"
