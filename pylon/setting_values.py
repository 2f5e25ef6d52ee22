"""Parsers of settings: convert the text of a variable to its value, or refuse it.

A parser returns the value, or raises a ValueError whose text names the allowed values. The parser
of origins normalises three spellings that have one meaning: the case of scheme and host, the
default port, and one slash at the end. It refuses every other spelling, and shows the right one if
it can derive it.

Invariants: no value of a setting holds a control character. An origin has the spelling that
browsers use in the header `Origin`. Called by `pylon.config`; `origin` also by
`pylon.auth.origin` and the manifest's checks.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parseaddr
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from pylon.roles import CHOSEN_ROLES

Parser = Callable[[str], Any]

_COLOUR: Final = re.compile(r"#[0-9a-fA-F]{6}")
_KEPT_MAX: Final = 10_000
ANDROID_ORIGIN: Final = "android:apk-key-hash:"  # how the origin of an Android app begins
_APK_HASH: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_RATE_MAX: Final = 1_000_000
# The rates of sign-in (`workers.identity.rates`) without a setting of their own.
SIGN_IN_RATES: Final = (
    "send_ip", "send_address", "send_pause", "verify_ip", "verify_account", "login_account_ip",
    "login_device", "register_ip", "start_ip", "reauth_user", "email_change_user", "invite_user",
)
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_WHOLE: Final = re.compile(r"[+-]?[0-9]{1,18}")  # int() also accepts 1_000 and non-ASCII digits
_NUMBER: Final = re.compile(
    r"[+-]?([0-9]{1,18}(\.[0-9]{0,18})?|\.[0-9]{1,18})([eE][+-]?[0-9]{1,3})?"
)
_COMMENT: Final = re.compile(r"\s#")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.(?!-)[A-Za-z0-9_-]{1,63})*\.?")
_COOKIE_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")  # a token of RFC 9110
_MAIL_ADDRESS: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+@[A-Za-z0-9.-]+")
_NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_NATIVE: Final = re.compile(r"[a-z][a-z0-9+.\-]*:[A-Za-z0-9._~/\-]+", re.ASCII)
_BROWSER_SCHEMES: Final = frozenset({
    "http", "https", "ws", "wss", "ftp", "file", "data", "blob", "javascript", "vbscript", "about",
    "filesystem", "view-source", "mailto", "tel", "intent", "content", "chrome",
})
_HOST_CHARS: Final = 253  # of a name in DNS
_SECRET_KEY_VALUES: Final = 8  # different bytes; random keys have 23 and more
_SECRET_KEY_HEX: Final = re.compile(r"[0-9A-Fa-f]{64}")
_SECRET_KEY_BASE64: Final = re.compile(r"[0-9A-Za-z+/_-]{43}=?")


def text(raw: str) -> str:
    """Return any text of one line."""
    if any(char < " " or char == "\x7f" for char in raw):
        raise ValueError("it has a line break or another control character")
    if _COMMENT.search(raw):
        raise ValueError(
            "it seems to end in a comment; for systemd and docker all text behind the = is the "
            "value, so give the comment a line of its own"
        )
    return raw


def db_path(raw: str) -> str:
    """Return the path of a database file. SQLite's other notations would name a file here."""
    if raw == ":memory:":
        raise ValueError("it would be a file of that name; PYLON_IN_MEMORY=true keeps none")
    if raw.startswith("file:") or "://" in raw:
        raise ValueError("expected the path of a file, not a URL")
    return text(raw)


def token(raw: str) -> str:
    """Return a bearer token that a header can carry; it may contain spaces."""
    if not (raw.isascii() and raw.isprintable()) or raw != raw.strip():
        raise ValueError(
            "expected printable ASCII characters, no space at the ends (for example the output "
            "of: openssl rand -hex 32)"
        )
    return text(raw)


def secret_key(raw: str) -> bytes:
    """Return the 32 bytes of a secret key in hex, base64 or base64url."""
    if _SECRET_KEY_HEX.fullmatch(raw):
        key = bytes.fromhex(raw)
    elif _SECRET_KEY_BASE64.fullmatch(raw):
        key = base64.urlsafe_b64decode(raw.rstrip("=").replace("+", "-").replace("/", "_") + "=")
    else:
        raise ValueError(
            "expected 32 bytes as 64 hex digits or in base64 (for example the output of: "
            "openssl rand -hex 32)"
        )
    if len(set(key)) < _SECRET_KEY_VALUES:
        raise ValueError("it repeats a few bytes: make one with openssl rand -hex 32")
    return key


def boolean(raw: str) -> bool:
    """Return true for `1` or `true` (spec/http.md §1.1), false for `0` or `false`."""
    if raw in ("1", "true"):
        return True
    if raw in ("0", "false"):
        return False
    raise ValueError("expected true, false, 1 or 0")


def colour(raw: str) -> str:
    """Return a colour as ``#rrggbb``."""
    if _COLOUR.fullmatch(raw) is None:
        raise ValueError("expected a colour as #rrggbb")
    return raw.lower()


def integer(low: int, high: int) -> Parser:
    """Return a parser of whole numbers within bounds."""

    def parse(raw: str) -> int:
        value = int(raw) if _WHOLE.fullmatch(raw.strip()) else low - 1
        if not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return parse


def decimal(low: float, high: float) -> Parser:
    """Return a parser of numbers within bounds."""

    def parse(raw: str) -> float:
        value = float(raw) if _NUMBER.fullmatch(raw.strip()) else low - 1
        if not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return value

    return parse


def choice(*allowed: str) -> Parser:
    """Return a parser that accepts the given words."""

    def parse(raw: str) -> str:
        if raw not in allowed:
            raise ValueError(f"expected one of {', '.join(allowed)}")
        return raw

    return parse


def role_names(raw: str) -> tuple[str, ...]:
    """Return the roles of a comma list, in the order of `pylon.roles`."""
    given = [part.strip() for part in raw.split(",") if part.strip()]
    if not given or not set(given) <= set(CHOSEN_ROLES):
        raise ValueError(f"expected a comma list of {', '.join(CHOSEN_ROLES)}")
    return tuple(name for name in CHOSEN_ROLES if name in given)


def node_name(raw: str) -> str:
    """Return the name of a node."""
    if not _NODE_NAME.fullmatch(raw):
        raise ValueError("expected 1 to 63 letters, digits, dots, hyphens and underscores")
    return raw


def region_name(raw: str) -> str:
    """Return the name of a region."""
    return node_name(raw)


def cluster_url(raw: str) -> str:
    """Return the address by which other nodes reach this one: ``tcp://host:port``."""
    parts = _split(raw, f"tcp://{raw}", noun="URL")
    if parts.scheme.lower() != "tcp":
        raise ValueError("expected tcp://host:port")
    host, port = _host_of(parts), _port_of(parts)
    if port is None or parts.path or parts.query or parts.fragment or parts.username is not None:
        raise ValueError("expected tcp://host:port, and no more")
    if host in ("0.0.0.0", "[::]"):  # nosec B104 # it is refused
        raise ValueError("other nodes cannot connect to that: name the address of this machine")
    return f"tcp://{host}:{port}"


def address(raw: str) -> str:
    """Return an address to listen on: IPv4, IPv6 or a host name, without a port."""
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
    """Return one origin as browsers send it, `*` or `null`."""
    given = raw.strip()
    if given in ("*", "null"):
        return given
    parts = _split(given, f"https://{given}", noun="origin")
    host, port = _host_of(parts), _port_of(parts)
    rest = parts.path.rstrip("/") or parts.query or parts.fragment or parts.username is not None
    scheme = parts.scheme.lower()
    right = f"{scheme}://{host}" + (f":{port}" if port else "")
    if rest or parts.path not in ("", "/") or given.endswith(("?", "#")):
        raise ValueError(f"an origin is scheme, host and port and no more: write {right}")
    return right


def origins(raw: str) -> tuple[str, ...]:
    """Return the origins of a comma list."""
    return tuple(origin(part) for part in raw.split(",") if part.strip())


def passkey_origins(raw: str) -> tuple[str, ...]:
    """Return the origins of a comma list of pages, and of Android apps as
    `android:apk-key-hash:<SHA-256 of the certificate>`."""
    found = []
    for part in (part.strip() for part in raw.split(",") if part.strip()):
        if not part.startswith(ANDROID_ORIGIN):
            found.append(origin(part))
        elif _APK_HASH.fullmatch(part.removeprefix(ANDROID_ORIGIN)):
            found.append(part)
        else:
            raise ValueError(
                f"{part!r}: expected {ANDROID_ORIGIN} and the SHA-256 of the app's certificate as "
                "base64url, which has 43 characters"
            )
    return tuple(found)


def words(raw: str) -> tuple[str, ...]:
    """Return the words of a comma list, of printable ASCII characters without spaces."""
    found = tuple(part.strip() for part in raw.split(",") if part.strip())
    if not all(word.isascii() and word.isprintable() and " " not in word for word in found):
        raise ValueError("expected a comma list of words of ASCII characters")
    return found


def rate_limits(raw: str) -> dict[str, int]:
    """Return the limits of a comma list as `send_ip=20,register_ip=100`, by the name of the
    rate."""
    found: dict[str, int] = {}
    for part in (part.strip() for part in raw.split(",") if part.strip()):
        name, _, count = (each.strip() for each in part.partition("="))
        if name not in SIGN_IN_RATES:
            raise ValueError(f"there is no rate {name!r}: they are {', '.join(SIGN_IN_RATES)}")
        if name in found:
            raise ValueError(f"{name} stands there twice")
        if not _WHOLE.fullmatch(count) or not 1 <= int(count) <= _RATE_MAX:
            raise ValueError(f"{part!r}: expected {name}=N with N from 1 to {_RATE_MAX}")
        found[name] = int(count)
    return found


def native_callbacks(raw: str) -> tuple[str, ...]:
    """Return the URLs of native apps in a comma list: of a scheme of their own."""
    found = tuple(part.strip() for part in raw.split(",") if part.strip())
    for each in found:
        if _NATIVE.fullmatch(each) is None:
            raise ValueError(
                f"{each!r} is no URL of a native app without query and fragment, in small letters "
                "up to its colon: write for example com.example.app:/auth"
            )
        if each.partition(":")[0] in _BROWSER_SCHEMES:
            raise ValueError(f"{each!r} has a scheme of browsers: an app has one of its own")
    return found


def url(*schemes: str) -> Parser:
    """Return a parser of absolute URLs with one of the schemes."""

    def parse(raw: str) -> str:
        parts = _split(raw, f"{schemes[-1]}://{raw}", noun="URL")
        if parts.scheme.lower() not in schemes:
            raise ValueError(f"expected {' or '.join(f'{scheme}://' for scheme in schemes)}")
        _host_of(parts)
        _port_of(parts)
        if parts.fragment or raw.endswith("#"):
            raise ValueError("a URL that clients connect to has no #fragment")
        return raw

    return parse


def header_fields(raw: str) -> tuple[tuple[str, str], ...]:
    """Return header fields of a request: ``name=value`` pairs with commas between."""
    fields = []
    for pair in raw.split(",") if raw.strip() else ():
        name, equals, value = pair.partition("=")
        if not equals or not _FIELD_NAME.fullmatch(name.strip()) or not value.isprintable():
            raise ValueError("expected name=value pairs with commas between")
        fields.append((name.strip().lower(), value.strip()))
    return tuple(fields)


def smtp_url(raw: str) -> str:
    """Return the URL of an SMTP server: smtps://user:password@host:465 or smtp://..."""
    parts = _split(raw, f"smtps://{raw}", noun="URL")
    if parts.scheme.lower() not in ("smtp", "smtps"):
        raise ValueError("expected smtps:// or smtp://")
    _host_of(parts)
    _port_of(parts)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError("expected smtps://user:password@host:port, and no more")
    if (parts.username is None) != (parts.password is None):
        raise ValueError(
            "expected a user and a password, or neither; signs in them are percent-encoded"
        )
    return raw


@dataclass(frozen=True, slots=True)
class KeepRules:
    """The retention of the archive of backups: every moment of the last `days`, and snapshots of so
    many days, weeks and months before."""

    days: int = 7
    daily: int = 14
    weekly: int = 8
    monthly: int = 12


def keep_rules(raw: str) -> KeepRules:
    """Return the rules of a comma list as `days=7,daily=14,weekly=8,monthly=12`."""
    found: dict[str, int] = {}
    for part in raw.split(","):
        name, _, count = part.strip().partition("=")
        if name not in KeepRules.__slots__ or name in found or not _WHOLE.fullmatch(count):
            raise ValueError("expected days=7,daily=14,weekly=8,monthly=12; each at most once")
        found[name] = int(count)
        if not (name == "days") <= found[name] <= _KEPT_MAX:
            raise ValueError(f"expected numbers up to {_KEPT_MAX}, and days of 1 or more")
    return KeepRules(**{name: found.get(name, 0) for name in KeepRules.__slots__} | {
        "days": found.get("days", 1)
    })


def archive_url(raw: str) -> str:
    """Return the URL of an archive of backups: `file:///folder` or `s3://bucket/prefix`."""
    parts = urlsplit(text(raw))
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            "expected no user, query or #fragment: the credentials of a bucket are in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    is_folder = parts.scheme == "file" and not parts.netloc and len(parts.path) > 1
    if not is_folder and not (parts.scheme == "s3" and parts.netloc):
        raise ValueError("expected file:///folder (three slashes) or s3://bucket/prefix")
    return raw


def url_or_path(raw: str) -> str:
    """Return an absolute URL of http or https, or a path of this server."""
    if raw.startswith("/") and not raw.startswith("//") and raw.isprintable() and raw.isascii():
        if "\\" in raw or " " in raw:
            raise ValueError("a path has no spaces and no backslashes")
        return raw
    parsed: str = url("http", "https")(raw)
    return parsed


def mailbox(raw: str) -> str:
    """Return a sender of mails: an address, or a name and an address in angle brackets."""
    if not raw.isprintable():
        raise ValueError("it has a line break or another control character")
    name, address = parseaddr(raw)
    is_whole = raw in (address, f"{name} <{address}>", f'"{name}" <{address}>')
    if not is_whole or not _MAIL_ADDRESS.fullmatch(address):
        raise ValueError("expected name@example.com, or My App <name@example.com>")
    return raw


def cookie_name(raw: str) -> str:
    """Return a valid name of a cookie (RFC 6265 §4.1.1)."""
    if not _COOKIE_NAME.fullmatch(raw):
        raise ValueError("expected letters, digits and !#$%&'*+-.^_`|~ only")
    return raw


def cookie_domain(raw: str) -> str:
    """Return a host name without its leading dot, which browsers ignore (RFC 6265 §5.2.3)."""
    host = raw.lower().removeprefix(".")
    if not _is_host_name(host) or host.endswith("."):
        raise ValueError(
            "expected a host name without scheme, port and path, for example example.com"
            + _ascii_form(host)
        )
    return host


def _split(given: str, example: str, noun: str) -> SplitResult:
    """Split one URL or origin (`noun`) into its parts.

    Raises:
        ValueError: the text has several, or lacks scheme or host; the message shows `example`.
    """
    if not given.isprintable():
        raise ValueError("it has characters that a header cannot carry")
    if " " in given or (noun == "origin" and "," in given):
        raise ValueError(f"expected one {noun}, without spaces")
    if not given.isascii():
        raise ValueError("expected ASCII characters" + _ascii_form(given.partition("://")[2]))
    scheme, mark, rest = given.partition("://")
    if not mark or not _SCHEME.fullmatch(scheme):
        host, _, port = given.partition("/")[0].partition(":")
        has_host = _is_host_name(host) and (not port or port.isdecimal())
        raise ValueError("expected scheme://host" + f", for example {example}" * has_host)
    if not rest or rest.startswith(("/", "?", "#")):
        raise ValueError("expected scheme://host; the host is missing")
    try:
        return urlsplit(given)
    except ValueError:  # an unbalanced bracket
        raise ValueError(f"expected scheme://host; {rest!r} is no host") from None


def _host_of(parts: SplitResult) -> str:
    """Return the host as browsers write it; IPv6 in brackets."""
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
    """Return the port; None for the default port of the scheme."""
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
    """Return a hint with the ASCII form that browsers send for a host name; "" if none exists."""
    if host.isascii():
        return ""
    try:
        return f"; browsers write this host {host.partition('/')[0].encode('idna').decode()}"
    except UnicodeError:
        return ""
