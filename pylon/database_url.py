"""Database URL: what DATABASE_URL chooses, and how it is shown to people.

A URL with the scheme `postgres` or `postgresql` chooses PostgreSQL. Any other value chooses nothing
here; `pylon.foreign_settings` judges it.

Invariants: no text of this module has the password of a URL, or another value of its query than the
host. A URL that libpq would read in another way than people do is refused. Called by
`pylon.config`, `pylon.foreign_settings`, and by everything that names the database in a message.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

_SCHEMES: Final = ("postgres://", "postgresql://")
_ENCODE: Final = "write special characters of the user and the password percent-encoded (@ as %40, "
_PORT_MAX: Final = 65_535


def is_postgres_url(text: str) -> bool:
    """Whether the text is a URL of PostgreSQL."""
    return text.lstrip().lower().startswith(_SCHEMES)


def chosen_database(raw: str) -> str | None:
    """Return the URL that DATABASE_URL names; None if it chooses no PostgreSQL.

    Raises:
        ValueError: it is a URL of PostgreSQL, and libpq could not read it or would misread it.
    """
    return postgres_url(raw) if is_postgres_url(raw) else None


def postgres_url(raw: str) -> str:
    """Return a URL of PostgreSQL.

    Raises:
        ValueError: it is none. The message has nothing of the text.
    """
    url = raw.strip()
    if not is_postgres_url(url):
        raise ValueError("expected postgres://user:password@host:5432/database")
    if not url.isprintable() or " " in url:
        raise ValueError(f"it has a space or a control character: {_ENCODE}a space as %20)")
    rest = url.partition("://")[2]
    place, _, path = rest.partition("?")[0].partition("/")
    if place.count("@") > 1 or "@" in path or "#" in rest:
        raise ValueError(f"it has an @ too many, or a #: {_ENCODE}/ as %2F, # as %23)")
    for host in place.rpartition("@")[2].split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isascii() and port.isdecimal() and 0 < int(port) <= _PORT_MAX):
            raise ValueError(f"its port is no number from 1 to 65535; {_ENCODE}/ as %2F)")
    return url


def shown_url(url: str) -> str:
    """Return the URL for people: user, hosts and database, without the password."""
    scheme, _, rest = url.strip().partition("://")
    secret, at, place = rest.rpartition("@")
    user = secret.partition(":")[0] if at else ""
    place, _, query = place.partition("?")
    hosts = [
        unquote(value) for name, _, value in (pair.partition("=") for pair in query.split("&"))
        if name == "host"
    ]
    shown = f"{scheme}://{user}{at}{place}"
    return f"{shown} (host {hosts[0]})" if hosts else shown
