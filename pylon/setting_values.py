"""Parsers of settings: the text of a variable becomes its value, or is refused.

A parser returns the value, or raises ValueError whose text says what is allowed. Spellings that
mean one thing only are normalised: the case and the default port of an origin, one slash at its
end. Every other spelling is refused, with the right one where it can be told.

Invariants: no value of a setting holds a control character; an origin is spelled as browsers
spell it in the header `Origin`. Called by `pylon.config`; `origin` also by `pylon.auth.origin`
and the manifest's checks.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

Parser = Callable[[str], Any]

_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")  # int() also takes 1_000 and digits of all scripts
_NUMBER: Final = re.compile(
    r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,3})?"
)
_COMMENT: Final = re.compile(r"\s#")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token of RFC 9110
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_HOST_CHARS: Final = 253  # of a name in DNS


def text(raw: str) -> str:
    """Any text of one line."""
    if any(char < " " or char == "\x7f" for char in raw):
        raise ValueError("it has a line break or another control character")
    if _COMMENT.search(raw):
        raise ValueError(
            "it seems to end in a comment; systemd and docker take all behind the = for the "
            "value, so give the comment a line of its own"
        )
    return raw


def db_path(raw: str) -> str:
    """The path of a database file; SQLite's own other notations would name a file here."""
    if raw == ":memory:":
        raise ValueError("it would be a file of that name; PYLON_IN_MEMORY=true keeps none")
    if raw.startswith("file:") or "://" in raw:
        raise ValueError("expected the path of a file, not a URL")
    return text(raw)


def token(raw: str) -> str:
    """A bearer token, as a header can carry it; a phrase with spaces is one."""
    if not (raw.isascii() and raw.isprintable()) or raw != raw.strip():
        raise ValueError(
            "expected printable ASCII characters, no space at the ends (for example the output "
            "of: openssl rand -hex 32)"
        )
    return text(raw)


def boolean(raw: str) -> bool:
    """spec/http.md §1.1: true is `1` or `true`; we refuse what is neither yes nor no."""
    if raw in ("1", "true"):
        return True
    if raw in ("0", "false"):
        return False
    raise ValueError("expected true, false, 1 or 0")


def integer(low: int, high: int) -> Parser:
    """A whole number within bounds."""

    def parse(raw: str) -> int:
        value = int(raw) if _WHOLE.fullmatch(raw.strip()) else low - 1
        if not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return parse


def decimal(low: float, high: float) -> Parser:
    """A number within bounds."""

    def parse(raw: str) -> float:
        value = float(raw) if _NUMBER.fullmatch(raw.strip()) else low - 1
        if not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return value

    return parse


def choice(*allowed: str) -> Parser:
    """One of a few words."""

    def parse(raw: str) -> str:
        if raw not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return raw

    return parse


def address(raw: str) -> str:
    """An address to listen on: IPv4, IPv6 or a host name, without a port."""
    host = raw[1:-1] if raw.startswith("[") and raw.endswith("]") else raw
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if host == "*":
            raise ValueError("all addresses are 0.0.0.0 (IPv4) or :: (IPv6)") from None
        if not _is_host_name(host):
            raise ValueError(
                "expected an IPv4 or IPv6 address or a host name, without a port (PYLON_PORT "
                "sets it)"
            ) from None
    return host


def origin(raw: str) -> str:
    """One origin as browsers send it, `*` or `null`."""
    given = raw.strip()
    if given in ("*", "null"):
        return given
    parts = _split(given, f"https://{given}", one="origin")
    host, port = _host_of(parts), _port_of(parts)
    rest = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username is not None
    scheme = parts.scheme.lower()
    right = f"{scheme}://{host}" + (f":{port}" if port else "")
    if rest or parts.path not in ("", "/") or given.endswith(("?", "#")):
        raise ValueError(f"an origin is scheme, host and port and no more: write {right}")
    return right


def origins(raw: str) -> tuple[str, ...]:
    """A comma list of origins."""
    return tuple(origin(part) for part in raw.split(",") if part.strip())


def url(*schemes: str) -> Parser:
    """An absolute URL of one of the schemes."""

    def parse(raw: str) -> str:
        parts = _split(raw, f"{schemes[-1]}://{raw}", one="URL")
        if parts.scheme.lower() not in schemes:
            raise ValueError(f"expected {' or '.join(f'{scheme}://' for scheme in schemes)}")
        _host_of(parts)
        _port_of(parts)
        if parts.fragment or raw.endswith("#"):
            raise ValueError("a URL that clients connect to has no #fragment")
        return raw

    return parse


def cookie_name(raw: str) -> str:
    """A name that a cookie can have (RFC 6265 §4.1.1)."""
    if not _COOKIE_NAME.fullmatch(raw):
        raise ValueError("expected letters, digits and !#$%&'*+-.^_`|~ only")
    return raw


def cookie_domain(raw: str) -> str:
    """A host name. A dot before it, which browsers ignore (RFC 6265 §5.2.3), is taken off."""
    host = raw.lower().removeprefix(".")
    if not _is_host_name(host) or host.endswith("."):
        raise ValueError(
            "expected a host name without scheme, port and path, for example example.com"
            + _ascii_form(host)
        )
    return host


def _split(given: str, right: str, one: str) -> SplitResult:
    """
    Raises:
        ValueError: it is more than one, or has no scheme and host.
    """
    if not given.isprintable():
        raise ValueError("it has characters that a header cannot carry")
    if " " in given or (one == "origin" and "," in given):
        more = " (PYLON_CSRF_ORIGINS takes a comma list of further ones)"
        raise ValueError(f"expected one {one}, without spaces" + more * (one == "origin"))
    if not given.isascii():
        raise ValueError("expected ASCII characters" + _ascii_form(given.partition("://")[2]))
    scheme, mark, rest = given.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        host, _, port = given.partition("/")[0].partition(":")
        has_host = _is_host_name(host) and (not port or port.isdecimal())
        raise ValueError("expected scheme://host" + f", for example {right}" * has_host)
    if not rest or rest.startswith(("/", "?", "#")):
        raise ValueError("expected scheme://host; the host is missing")
    try:
        return urlsplit(given)
    except ValueError:  # an unbalanced bracket
        raise ValueError(f"expected scheme://host; {rest!r} is no host") from None


def _host_of(parts: SplitResult) -> str:
    """The host as browsers write it; IPv6 in brackets."""
    host = parts.hostname or ""
    if "*" in host:
        raise ValueError("a browser's origin is never a pattern: name one host")
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host).compressed}]"
        except ValueError:
            raise ValueError(f"{host!r} is no IPv6 address") from None
    if not _is_host_name(host):
        raise ValueError(f"{host!r} is no host name")
    return host


def _port_of(parts: SplitResult) -> int | None:
    """The port; None for the scheme's own."""
    try:
        port = parts.port
    except ValueError:
        raise ValueError("its port is no number from 1 to 65535") from None
    if port == 0:
        raise ValueError("its port is no number from 1 to 65535")
    return None if port == _DEFAULT_PORTS.get(parts.scheme.lower()) else port


def _is_host_name(host: str) -> bool:
    return len(host) <= _HOST_CHARS and _HOST.fullmatch(host) is not None


def _ascii_form(host: str) -> str:
    """The form of a host name that browsers use on the wire, as a hint; "" if there is none."""
    if host.isascii():
        return ""
    try:
        return f"; browsers write this host {host.partition('/')[0].encode('idna').decode()}"
    except UnicodeError:
        return ""
