"""Options of a client, and what the environment says about them.

`PYLON_URL` is the server's address, `PYLON_TOKEN` a token, and `PYLON_LOG` the level (``debug``,
``info`` and so on) at which the logger ``pylon_client`` writes to stderr. Called by both shells.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias
from urllib.parse import urlsplit

DEFAULT_URL: Final = "http://localhost:4321"
DEFAULT_TIMEOUT_S: Final = 30.0
DEFAULT_RETRIES: Final = 2

Token: TypeAlias = "str | Callable[[], str | None] | Callable[[], Awaitable[str | None]] | None"

log: Final = logging.getLogger("pylon_client")


@dataclass(frozen=True, slots=True)
class Options:
    """How requests are sent. `timeout_s` is for one try."""

    url: str
    timeout_s: float = DEFAULT_TIMEOUT_S
    max_retries: int = DEFAULT_RETRIES
    headers: Mapping[str, str] = field(default_factory=dict)


def read_url(url: str | None) -> str:
    """Return the address of the server, without a slash at its end.

    Raises:
        ValueError: it is no http or https address.
    """
    found = url or os.environ.get("PYLON_URL") or DEFAULT_URL
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"url is {found!r}: expected http://host:port or https://host "
            "(the argument url, or the environment variable PYLON_URL)"
        )
    return found.rstrip("/")


def read_token(token: Token) -> Token:
    """Return the token, or that of the environment."""
    return token if token is not None else os.environ.get("PYLON_TOKEN") or None


def set_up_log() -> None:
    """Write the log to stderr if PYLON_LOG names a level. A second call changes nothing."""
    level = logging.getLevelNamesMapping().get(os.environ.get("PYLON_LOG", "").upper())
    if level is not None and not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(level)
