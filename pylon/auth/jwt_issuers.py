"""Issuers of JWTs: whose tokens count besides those of this server.

PYLON_JWT_JWKS_URL, _ISSUER and _AUDIENCE name one; PYLON_JWT_ISSUERS_FILE names more, each with a
table of TOML:

    [issuers.staff]
    issuer = "https://login.example.com/"
    jwks_url = "https://login.example.com/keys"
    audience = ["https://api.example.com"]

Invariants: a token belongs to the issuer that its `iss` names exactly, so no two have the same
name, and none has that of this server. Every problem is one line with the file and the table.
Called by `pylon.startup`, and by the identity process.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pylon.config import Config
from pylon.errors import StartRefused
from pylon.limits import JWT_ISSUERS

_KEYS: Final = ("issuer", "jwks_url", "audience")
_FILE_BYTES: Final = 262_144


@dataclass(frozen=True, slots=True)
class JwtIssuer:
    """One issuer: its name as `iss` has it, where its keys are, and for whom its tokens are."""

    name: str
    jwks_url: str
    audiences: tuple[str, ...]


def read_issuers(config: Config) -> tuple[JwtIssuer, ...]:
    """Return the issuers of the settings.

    Raises:
        StartRefused: the file cannot be used.
    """
    found = []
    if config.jwt_jwks_url is not None:
        found.append(JwtIssuer(
            config.jwt_jwks_issuer or "", config.jwt_jwks_url, config.jwt_jwks_audience
        ))
    if config.jwt_issuers_file is not None:
        found += [
            _read_issuer(f"PYLON_JWT_ISSUERS_FILE: [issuers.{name}]", table, config)
            for name, table in _read_tables(Path(config.jwt_issuers_file)).items()
        ]
    names = [config.jwt_issuer, *(each.name for each in found)]
    for name in names:
        if names.count(name) > 1:
            raise StartRefused(
                f"two issuers of JWTs are called {name!r}, and a token says only this name: give "
                "each another one (that of this server is PYLON_JWT_ISSUER)"
            )
    if len(found) > JWT_ISSUERS:
        raise StartRefused(f"there are {len(found)} issuers of JWTs (limit {JWT_ISSUERS})")
    return tuple(found)


def _read_tables(path: Path) -> Mapping[str, Any]:
    try:
        raw = path.read_bytes()
        if len(raw) > _FILE_BYTES:
            raise StartRefused(f"PYLON_JWT_ISSUERS_FILE: {path} has over {_FILE_BYTES} bytes")
        document = tomllib.loads(raw.decode())
    except OSError as ex:
        raise StartRefused(f"PYLON_JWT_ISSUERS_FILE: {path} cannot be read: {ex.strerror}") from ex
    except ValueError as ex:  # no TOML, or no UTF-8
        raise StartRefused(f"PYLON_JWT_ISSUERS_FILE: {path} is no TOML: {ex}") from ex
    issuers = document.pop("issuers", None)
    if document or not isinstance(issuers, dict) or not issuers:
        raise StartRefused(
            f"PYLON_JWT_ISSUERS_FILE: {path} has {', '.join(document) or 'no table of an issuer'}: "
            "write a table [issuers.<name>] for each issuer, and nothing else"
        )
    return issuers


def _read_issuer(where: str, table: object, config: Config) -> JwtIssuer:
    if not isinstance(table, dict) or set(table) != set(_KEYS):
        raise StartRefused(f"{where} needs the keys {', '.join(_KEYS)}, and no other")
    name, url, audience = (table[key] for key in _KEYS)
    audiences = audience if isinstance(audience, list) else [audience]
    for key, value in (("issuer", name), ("jwks_url", url), *(("audience", a) for a in audiences)):
        if not isinstance(value, str) or not value.strip():
            raise StartRefused(f"{where}: {key} is {value!r}: write a text")
    if not audiences:
        raise StartRefused(
            f"{where}: audience is empty: tokens that were made for other services would count"
        )
    if not (url.startswith("https://") or (config.dev_mode and url.startswith("http://"))):
        raise StartRefused(
            f"{where}: jwks_url is {url}: whoever is on the way could send keys; write https://"
        )
    return JwtIssuer(name, url, tuple(audiences))
