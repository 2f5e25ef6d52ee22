"""Foreign settings: variables of the published server (spec/http.md §1.2) without effect here.

An operator who moves from that server brings its environment along. A start refuses a variable
whose intent would silently fail: data would lie in another place than the variable names, or a
requested protection would be missing. In dev mode a missing protection is a warning. A variable of
a feature that this server does not have is a warning, because each use of the feature returns an
error.

Invariants: the text of a value is never shown (many are secrets); an empty value counts as not
set. Called by `pylon.config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from pylon.database_url import is_postgres_url


class Effect(Enum):
    """The consequence of ignoring a variable."""

    DATA = "data lies elsewhere"
    PROTECTION = "a protection is missing"
    FEATURE = "a feature is missing"


class Foreign(msgspec.Struct, frozen=True):
    """One variable, or a family of them; `names` are patterns, divided by spaces."""

    names: str
    effect: Effect
    remedy: str


FOREIGN: Final[tuple[Foreign, ...]] = (
    Foreign("DATABASE_URL", Effect.DATA,
            "it is no URL of PostgreSQL (postgres://...), so the data is in the SQLite file of "
            "PYLON_DB_PATH, not there: unset it (pylonctl import takes over rows that were "
            "exported)"),
    Foreign("PYLON_SESSION_DB", Effect.DATA,
            "sessions are kept in the main database (PYLON_DB_PATH), not there: unset it"),
    Foreign("PYLON_SESSION_IN_MEMORY", Effect.PROTECTION,
            "sessions are kept in the database, on disk: unset it"),
    Foreign("PYLON_WS_MAX_FRAME", Effect.PROTECTION,
            "set PYLON_WS_MAX_MESSAGE_BYTES instead, and unset it"),
    Foreign("RUST_LOG", Effect.FEATURE, "PYLON_LOG_LEVEL is the setting here"),
    Foreign("PYLON_TRUSTED_ORIGINS", Effect.FEATURE,
            "PYLON_CORS_ORIGIN and PYLON_CSRF_ORIGINS name the pages that sign-in may return to"),
    Foreign("PYLON_JOBS_* PYLON_WORKFLOW_*", Effect.FEATURE, "there are no background jobs"),
    Foreign("PYLON_FUNCTIONS_* PYLON_FN_*", Effect.FEATURE, "there are no functions"),
    Foreign("PYLON_FILES_URL_PREFIX", Effect.FEATURE, "files are below /api/files"),
    Foreign("PYLON_FILES_PROVIDER PYLON_S3_* PYLON_STACK0_*", Effect.FEATURE,
            "files are kept on the disk, in PYLON_FILES_DIR"),
    Foreign("PYLON_AI_*", Effect.FEATURE, "there are no AI routes"),
    Foreign("PYLON_STRIPE_*", Effect.FEATURE, "there is no billing"),
    Foreign("PYLON_API_KEY_*", Effect.FEATURE, "there are no API keys"),
    Foreign("PYLON_EMAIL_HTTP_URL", Effect.FEATURE, "PYLON_EMAIL_ENDPOINT is the setting here"),
    Foreign("PYLON_TWILIO_*", Effect.FEATURE, "no SMS is sent"),
    Foreign("PYLON_TOTP_* PYLON_SSO_* PYLON_SAML_* PYLON_SCIM_* PYLON_OIDC_* PYLON_CAPTCHA_*",
            Effect.FEATURE, "there is no such way to sign in"),
    Foreign("PYLON_TEST_DIR", Effect.FEATURE, "there is no test runner"),
)


def find_foreign(name: str) -> Foreign | None:
    """Return the entry whose patterns match a variable, or None."""
    for entry in FOREIGN:
        if any(fnmatchcase(name, pattern) for pattern in entry.names.split(" ")):
            return entry
    return None


def judge_foreign(
    sources: list[tuple[str, Mapping[str, str]]], *, dev_mode: bool
) -> Iterator[tuple[bool, str]]:
    """Yield for each foreign variable that is set whether a start refuses it, and the message."""
    for origin, source in sources:
        for name in sorted(source):
            entry = find_foreign(name)
            value = source[name].strip()
            if entry is None or not value or _is_off(name, value):
                continue
            is_refused = entry.effect is Effect.DATA or (
                entry.effect is Effect.PROTECTION and not dev_mode
            )
            if name == "DATABASE_URL":
                if is_postgres_url(value):
                    continue  # a setting of this server
                if dev_mode:
                    is_refused = False  # the published `dev` ignores it as well
            yield is_refused, f"{name} (from {origin}) has no effect: {entry.remedy}"


def _is_off(name: str, value: str) -> bool:
    return name.endswith("_IN_MEMORY") and value not in ("1", "true")
