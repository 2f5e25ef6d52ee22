"""The profile of a user as a provider states it: subject, e-mail address, name, picture.

Invariants: an address counts as verified only if the provider says so of this very address, in the
same object. Everything a provider says is of the type declared here, of bounded length, or absent.
Called by `workers.identity.providers.client`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from pylon.provider_settings import ProviderSettings

_SUBJECT_CHARS: Final = 255
_EMAIL_CHARS: Final = 254
_NAME_CHARS: Final = 100
_URL_CHARS: Final = 2_048
# Providers that state true in another form than the JSON value.
_TRUE_OF: Final[Mapping[str, tuple[object, ...]]] = {
    "apple": (True, "true"), "microsoft": (True, "true", "1"),
}


@dataclass(frozen=True, slots=True)
class Profile:
    """One user of a provider. `subject` is the provider's stable id of the user."""

    provider: str
    subject: str
    email: str | None
    is_email_verified: bool
    name: str | None
    avatar_url: str | None


def read_profile(
    settings: ProviderSettings, subject: str, sources: Sequence[Mapping[str, Any]]
) -> Profile:
    """Return the profile of a user.

    Args:
        sources: the claims of the ID token, the userinfo response, in the order of precedence.
    """
    email, is_verified = None, False
    for source in sources:
        email = _text(source, settings.email, _EMAIL_CHARS)
        if email is not None:
            is_verified = _is_true(settings, source)
            break
    return Profile(
        settings.provider, subject, email, is_verified,
        _first(sources, settings.name, _NAME_CHARS), _picture(sources, settings.avatar_url),
    )


def subject_of(settings: ProviderSettings, userinfo: Mapping[str, Any]) -> str | None:
    """Return the id of the user in a userinfo response, which may be a whole number (GitHub)."""
    value = userinfo.get(settings.subject)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(userinfo, settings.subject, _SUBJECT_CHARS)


def primary_address(entries: object) -> tuple[str, bool] | None:
    """Return the primary address of GitHub's list, and whether GitHub has verified it."""
    if not isinstance(entries, list):
        return None
    for entry in entries:
        if isinstance(entry, dict) and entry.get("primary") is True:
            email = _text(entry, "email", _EMAIL_CHARS)
            return None if email is None else (email, entry.get("verified") is True)
    return None


def _is_true(settings: ProviderSettings, source: Mapping[str, Any]) -> bool:
    if settings.email_verified is None:
        return False
    value = source.get(settings.email_verified)
    return value is True or (
        isinstance(value, str) and value in _TRUE_OF.get(settings.provider, ())
    )


def _text(source: Mapping[str, Any], key: str | None, max_chars: int) -> str | None:
    value = None if key is None else source.get(key)
    return value if isinstance(value, str) and 0 < len(value) <= max_chars else None


def _first(sources: Sequence[Mapping[str, Any]], key: str | None, max_chars: int) -> str | None:
    for source in sources:
        value = None if key is None else source.get(key)
        if isinstance(value, str) and value.strip():
            return value.strip()[:max_chars]
    return None


def _picture(sources: Sequence[Mapping[str, Any]], key: str | None) -> str | None:
    """Return the URL of the picture, which other users' browsers will load: https only."""
    url = _first(sources, key, _URL_CHARS + 1)
    if url is None or len(url) > _URL_CHARS or not url.isascii() or not url.isprintable():
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme == "https" and parts.hostname and " " not in url else None
