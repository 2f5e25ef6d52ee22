"""Checks of settings: find combinations that a start refuses, though each value alone is valid.

Each check yields one line that names the setting, the value and the remedy. `refuse_unsafe`
raises the first for a start; `pylonctl check-config` prints them all. Re-exported by
`pylon.config`; called by `pylon.startup` and the supervisor.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pylon.errors import StartRefused
from pylon.roles import PORT_BY_ROLE
from pylon.setting_values import ANDROID_ORIGIN

if TYPE_CHECKING:
    from pylon.config import Config

_LAST_PORT: Final = 65_535
_JWT_SECRET_CHARS: Final = 32  # RFC 7518 §3.2 wants as many bits as the hash has


def refuse_unsafe(config: Config) -> None:
    """Refuse unsafe settings (spec/http.md §1.3, design.md §2.7).

    Raises:
        StartRefused: the first problem, as one line with the remedy.
    """
    for problem in unsafe_settings(config):
        raise StartRefused(problem)


def unsafe_settings(config: Config) -> Iterator[str]:
    """Yield every problem that `refuse_unsafe` looks for, one line each."""
    if config.dev_mode:
        if not config.admin_token:
            yield (
                "PYLON_DEV_MODE is on and PYLON_ADMIN_TOKEN is not set: "
                "set one (for example: export PYLON_ADMIN_TOKEN=$(openssl rand -hex 32))"
            )
    else:
        yield from _unsafe_origins(config)
    if config.admin_token_previous and not config.admin_token:
        yield (
            "PYLON_ADMIN_TOKEN_PREVIOUS is set without PYLON_ADMIN_TOKEN: it is for the change to "
            "another token; set PYLON_ADMIN_TOKEN, or unset both"
        )
    yield from _secret_key_problems(config)
    yield from _cookie_problems(config)
    yield from _provider_problems(config)
    yield from _passkey_problems(config)
    yield from _jwt_problems(config)
    yield from _captcha_problems(config)
    yield from _mail_problems(config)
    yield from _database_problems(config)
    yield from _cluster_problems(config)
    yield from _backup_problems(config)
    yield from _tracing_problems(config)
    for role, entry in PORT_BY_ROLE.items():
        port = config.port_of(role)
        if config.workers_of(role) and port > _LAST_PORT:
            yield f"the {role} port would be {port}: set {entry.setting} or lower PYLON_PORT"
    if config.app is not None and not Path(config.app).is_file():
        yield f"PYLON_APP is {config.app!r}, which is not a file"
    if config.static_dir is not None:
        yield from _static_dir_problems(config, Path(config.static_dir))


def _tracing_problems(config: Config) -> Iterator[str]:
    if config.otel_endpoint is not None and not (
        find_spec("opentelemetry") and find_spec("opentelemetry.proto")
    ):
        yield (
            "PYLON_OTEL_ENDPOINT is set, and opentelemetry-proto is not installed: "
            "pip install 'pylon-server[otel]'"
        )


def _backup_problems(config: Config) -> Iterator[str]:
    url = config.backup_url
    if url is None:
        return
    if config.database_url is not None:
        yield (
            "PYLON_BACKUP_URL is set with DATABASE_URL: it ships the log of SQLite; PostgreSQL "
            "archives its own (docs/postgres-backup.md); unset one of them"
        )
    if config.in_memory:
        yield "PYLON_BACKUP_URL is set with PYLON_IN_MEMORY: unset one of them"
    if url.startswith("s3://") and find_spec("obstore") is None:
        yield (
            "PYLON_BACKUP_URL names a bucket, and obstore is not installed: "
            "pip install 'pylon-server[s3]'"
        )
    for recipient in config.backup_recipients:
        if not _is_recipient(recipient):
            yield (
                f"PYLON_BACKUP_RECIPIENTS has {recipient[:20]!r}, which is no age recipient: "
                "age-keygen prints one (age1…)"
            )


def _is_recipient(text: str) -> bool:
    import pyrage

    try:
        pyrage.x25519.Recipient.from_str(text)
    except pyrage.RecipientError:
        return False
    return True


def _secret_key_problems(config: Config) -> Iterator[str]:
    is_given = config.secret_key is not None or config.secret_key_file is not None
    if config.secret_key is not None and config.secret_key_file is not None:
        yield "PYLON_SECRET_KEY and PYLON_SECRET_KEY_FILE are both set: unset one of them"
    if config.secret_key_previous is not None and not is_given:
        yield (
            "PYLON_SECRET_KEY_PREVIOUS is set without PYLON_SECRET_KEY: it is for the change to "
            "another key; set PYLON_SECRET_KEY, or unset both"
        )
    if config.database_url is not None and not is_given:
        yield (
            "PYLON_SECRET_KEY is not set, and with DATABASE_URL no file of this machine can keep "
            "the key for all nodes: set it to the output of `openssl rand -hex 32`, the same on "
            "all nodes (data that came from SQLite keep their key: PYLON_SECRET_KEY_FILE names "
            "its secret.key)"
        )


def _mail_problems(config: Config) -> Iterator[str]:
    """Yield the settings that the chosen sender of mails lacks."""
    needed: tuple[str, ...] = {
        "smtp": ("email_smtp_url",), "webhook": ("email_endpoint",), "file": ("email_folder",),
        "resend": ("email_api_key",), "sendgrid": ("email_api_key",),
    }.get(config.email_provider or "", ())
    if needed and not config.dev_mode:
        needed += ("email_from",)
    for field in needed:
        if getattr(config, field) is None:
            yield (
                f"PYLON_EMAIL_PROVIDER is {config.email_provider}, and PYLON_{field.upper()} is "
                "not set: set it"
            )


def _provider_problems(config: Config) -> Iterator[str]:
    """Yield the sign-in providers that could not send a browser back."""
    if config.public_url is not None or config.dev_mode:
        return
    for provider in config.sign_in_providers:
        if provider.redirect is None:
            name = provider.provider
            yield (
                f"the sign-in provider {name} needs PYLON_PUBLIC_URL, the URL that browsers reach "
                f"this server by, or PYLON_OAUTH_{name.upper()}_REDIRECT"
            )


def _passkey_problems(config: Config) -> Iterator[str]:
    """Yield the origins of passkeys that browsers would refuse."""
    if not config.webauthn_origin:
        if config.webauthn_rp_id is not None and not config.dev_mode:
            yield (
                "PYLON_WEBAUTHN_RP_ID is set without PYLON_WEBAUTHN_ORIGIN: name the origins of "
                "the pages that use passkeys, or unset it"
            )
        return
    pages = [each for each in config.webauthn_origin if not each.startswith(ANDROID_ORIGIN)]
    hosts = [urlsplit(origin).hostname or "" for origin in pages]
    domain = config.webauthn_rp_id or (hosts[0] if hosts else None)
    if domain is None:
        yield (
            "PYLON_WEBAUTHN_ORIGIN names Android apps only: set PYLON_WEBAUTHN_RP_ID to the domain "
            "that their passkeys belong to"
        )
    for origin, host in zip(pages, hosts, strict=True):
        is_local = host == "localhost" or host.endswith(".localhost")
        if origin in ("*", "null") or not (origin.startswith("https://") or is_local):
            yield (
                f"PYLON_WEBAUTHN_ORIGIN has {origin}: browsers use passkeys on pages of https only "
                "(and of localhost): write https://<host>"
            )
        elif host.replace(".", "").isdecimal() or ":" in host:
            yield (
                f"PYLON_WEBAUTHN_ORIGIN has {origin}: passkeys belong to a domain, and it names "
                "an address: write the host's name"
            )
        elif host != domain and not host.endswith(f".{domain}"):
            yield (
                f"PYLON_WEBAUTHN_ORIGIN has {origin}, which is not within {domain}: set "
                "PYLON_WEBAUTHN_RP_ID to the domain of all origins"
            )


def _jwt_problems(config: Config) -> Iterator[str]:
    """Yield why JWTs could be forged, or would never count."""
    for name, secret in (
        ("PYLON_JWT_SECRET", config.jwt_secret),
        ("PYLON_JWT_SECRET_PREVIOUS", config.jwt_secret_previous),
    ):
        if secret is not None and len(secret) < _JWT_SECRET_CHARS:
            yield (
                f"{name} has {len(secret)} characters, and whoever has one JWT could guess it: "
                f"write {_JWT_SECRET_CHARS} or more (for example of openssl rand -hex 32)"
            )
    if config.jwt_secret_previous is not None and config.jwt_secret is None:
        yield (
            "PYLON_JWT_SECRET_PREVIOUS is set without PYLON_JWT_SECRET: it is for the change to "
            "another secret; set PYLON_JWT_SECRET, or unset both"
        )
    url = config.jwt_jwks_url
    others = {
        "PYLON_JWT_JWKS_ISSUER": config.jwt_jwks_issuer,
        "PYLON_JWT_JWKS_AUDIENCE": config.jwt_jwks_audience,
    }
    for name, value in others.items():
        if url is not None and not value:
            yield (
                f"PYLON_JWT_JWKS_URL is set without {name}: tokens that its issuer made for "
                "another service would count here; set it"
            )
        elif url is None and value:
            yield f"{name} is set without PYLON_JWT_JWKS_URL: set that, or unset it"
    if url is not None and not (url.startswith("https://") or config.dev_mode):
        yield f"PYLON_JWT_JWKS_URL is {url}: whoever is on the way could send keys; write https://"
    if url is not None and config.jwt_jwks_issuer == config.jwt_issuer:
        yield (
            f"PYLON_JWT_JWKS_ISSUER and PYLON_JWT_ISSUER are both {config.jwt_issuer!r}: "
            "give this server's JWTs another issuer"
        )


def _captcha_problems(config: Config) -> Iterator[str]:
    """Yield why captchas would be asked for in vain, or tell their secret."""
    others = {
        "PYLON_CAPTCHA_SECRET": config.captcha_secret,
        "PYLON_CAPTCHA_SITE_KEY": config.captcha_site_key,
        "PYLON_CAPTCHA_VERIFY_URL": config.captcha_verify_url,
        "PYLON_CAPTCHA_SCRIPT_URL": config.captcha_script_url,
    }
    if config.captcha_provider is None:
        for name, value in others.items():
            if value is not None:
                yield f"{name} is set without PYLON_CAPTCHA_PROVIDER: set that, or unset it"
        return
    if config.captcha_secret is None:
        yield (
            "PYLON_CAPTCHA_PROVIDER is set without PYLON_CAPTCHA_SECRET: nothing could be checked; "
            "set the secret that the service gave you"
        )
    if config.captcha_site_key is None and config.auth_page:
        yield (
            "PYLON_CAPTCHA_PROVIDER is set without PYLON_CAPTCHA_SITE_KEY: nobody could register "
            "on the page /auth/; set it, or PYLON_AUTH_PAGE=false"
        )
    for name in ("PYLON_CAPTCHA_VERIFY_URL", "PYLON_CAPTCHA_SCRIPT_URL"):
        url = others[name]
        if url is not None and not (url.startswith("https://") or config.dev_mode):
            yield f"{name} is {url}: whoever is on the way could solve all captchas; write https://"


def _database_problems(config: Config) -> Iterator[str]:
    """Yield the settings of a database, or of a node, that would have no effect."""
    if config.database_url is not None:
        if config.in_memory:
            yield "PYLON_IN_MEMORY is on, and DATABASE_URL names a database: unset one of them"
        return
    if config.database_direct_url is not None:
        yield "PYLON_DATABASE_DIRECT_URL is set without DATABASE_URL: set both, or neither"
    if "http" not in config.roles:
        yield (
            "PYLON_ROLES leaves out http, and without DATABASE_URL no other node can serve it: "
            "nobody could write"
        )


def _cluster_problems(config: Config) -> Iterator[str]:
    """Yield what is wrong with the address for other nodes."""
    url = config.cluster_url
    if url is None:
        return
    if config.database_url is None:
        yield "PYLON_CLUSTER_URL is set without DATABASE_URL: nodes meet in a PostgreSQL database"
        return
    first = urlsplit(url).port or 0
    ports = range(first, first + config.workers_of("shards"))
    if ports and ports[-1] > _LAST_PORT:
        yield (
            f"PYLON_CLUSTER_URL is {url}, and its port plus PYLON_SHARD_WORKERS - 1 is "
            f"{ports[-1]}: take a lower port"
        )
    for role in PORT_BY_ROLE:
        if config.workers_of(role) and config.port_of(role) in ports:
            yield (
                f"PYLON_CLUSTER_URL is {url}, and {config.port_of(role)} is the port of "
                f"{role} too: take another port (each shards worker needs one)"
            )


def _unsafe_origins(config: Config) -> Iterator[str]:
    example = "give the web app's origin, for example https://app.example.com"
    if not config.cors_origin:
        yield f"PYLON_CORS_ORIGIN must be set in production (non-dev mode): {example}"
    elif "*" in config.cors_origin:
        yield f'PYLON_CORS_ORIGIN="*" is refused in production mode: {example}'
    elif "null" in config.cors_origin:
        yield (
            'PYLON_CORS_ORIGIN="null" is refused in production mode (every sandboxed frame has '
            f"that origin): {example}"
        )
    for origin in unsafe_origins(config.csrf_origins):
        yield (
            f'PYLON_CSRF_ORIGINS with "{origin}" is refused in production mode (any page could '
            "send writes with a visitor's cookie): name the origins"
        )


def unsafe_origins(names: Iterable[str]) -> list[str]:
    """Return the origins in `names` that any page can have: `*`, and `null` (sandboxed frames)."""
    return [name for name in names if name.strip() in ("*", "null")]


def _cookie_problems(config: Config) -> Iterator[str]:
    if config.cookie_name is not None:
        yield from cookie_name_problems(config, config.cookie_name, "PYLON_COOKIE_NAME is")


def cookie_name_problems(config: Config, name: str, where: str) -> Iterator[str]:
    """Yield why browsers would refuse a session cookie of this name (RFC 6265bis, prefixes).

    Args:
        where: the beginning of the sentence, which names the origin of the name.
    """
    is_secure = config.cookie_secure or config.cookie_same_site == "none"
    if name.lower().startswith(("__secure-", "__host-", "__http-")) and not is_secure:
        yield f"{where} {name!r}: browsers want PYLON_COOKIE_SECURE=true with it"
    if name.lower().startswith("__host-") and config.cookie_domain:
        yield f"{where} {name!r}: browsers want no PYLON_COOKIE_DOMAIN with it"


def _static_dir_problems(config: Config, folder: Path) -> Iterator[str]:
    if not folder.is_dir():
        yield f"PYLON_STATIC_DIR is {config.static_dir!r}, which is not a folder"
        return
    root = Path(os.path.realpath(folder))
    private = {"PYLON_DB_PATH": config.data_dir}
    if config.runtime_dir is not None:
        private["PYLON_RUNTIME_DIR"] = Path(config.runtime_dir)
    if config.in_memory:
        del private["PYLON_DB_PATH"]
    for setting, path in private.items():
        if Path(os.path.realpath(path)).is_relative_to(root):
            yield (
                f"PYLON_STATIC_DIR is {config.static_dir!r}, and the folder of {setting} "
                f"({path}) is in it: its files would be served to everybody; move one of them"
            )
