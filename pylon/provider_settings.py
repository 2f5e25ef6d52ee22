"""Settings of sign-in providers: who may vouch for users (Google, GitHub, any OpenID issuer).

A provider is declared by the variables PYLON_OAUTH_<NAME>_CLIENT_ID, _CLIENT_SECRET and so on, or
by a table `[providers.<name>]` of the TOML file PYLON_OAUTH_FILE, or by both: a variable wins over
the same key of the file. `PRESETS` has what is known of Google, GitHub, Microsoft and Apple. Every
other provider needs an `issuer` (OpenID Connect) or three endpoints (OAuth 2).

Invariants: `read_providers` never raises; each problem is one line with the place, what is allowed
and the remedy, and no line shows a value that may be secret. Secrets are not in the repr of
`ProviderSettings`. Called by `pylon.config`.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pylon import setting_values

FAMILY: Final = re.compile(
    r"PYLON_OAUTH_([A-Z0-9][A-Z0-9_]*?)_(CLIENT_ID|CLIENT_SECRET|OIDC_ISSUER|ISSUER|REDIRECT|SCOPES"
    r"|TENANT|STORE_TOKENS|TEAM_ID|KEY_ID|PRIVATE_KEY)"
)
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_]{0,31}")
_TENANT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,252}")
_ALIASES: Final = {"oidc_issuer": "issuer"}  # as the published server spells it
_FILE_BYTES: Final = 1_048_576
_TENANT_MARK: Final = "{tenant}"


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One provider. With an `issuer` it is of OpenID Connect, else of OAuth 2 with endpoints.

    `subject`, `email`, `email_verified`, `name` and `avatar_url` name the members of the userinfo
    response that have the profile; None: the provider does not say it.
    """

    provider: str
    client_id: str = ""
    client_secret: str | None = field(default=None, repr=False)
    issuer: str | None = None
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    emails_endpoint: str | None = None  # GitHub's list of addresses
    scopes: str = "openid email profile"
    redirect: str | None = None  # None: <PYLON_PUBLIC_URL>/api/auth/callback/<provider>
    tenant: str | None = None  # of Microsoft
    response_mode: str | None = None
    store_tokens: bool = False
    team_id: str | None = None  # of Apple, as the two below
    key_id: str | None = None
    private_key: str | None = field(default=None, repr=False)
    native_client_ids: tuple[str, ...] = ()
    subject: str = "sub"
    email: str | None = "email"
    email_verified: str | None = "email_verified"
    name: str | None = "name"
    avatar_url: str | None = "picture"

    @property
    def is_oidc(self) -> bool:
        """Whether it is of OpenID Connect: endpoints by discovery, and an ID token."""
        return self.issuer is not None

    @property
    def has_signed_secret(self) -> bool:
        """Whether the client secret is a JWT that the private key signs (Apple)."""
        return self.private_key is not None


PRESETS: Final[Mapping[str, ProviderSettings]] = {
    "google": ProviderSettings("google", issuer="https://accounts.google.com"),
    "github": ProviderSettings(
        "github", authorization_endpoint="https://github.com/login/oauth/authorize",
        token_endpoint="https://github.com/login/oauth/access_token",
        userinfo_endpoint="https://api.github.com/user",
        emails_endpoint="https://api.github.com/user/emails", scopes="read:user user:email",
        subject="id", email=None, email_verified=None, avatar_url="avatar_url",
    ),
    "microsoft": ProviderSettings(
        "microsoft", issuer=f"https://login.microsoftonline.com/{_TENANT_MARK}/v2.0",
        tenant="common", email_verified="xms_edov",
    ),
    "apple": ProviderSettings(
        "apple", issuer="https://appleid.apple.com", scopes="name email",
        response_mode="form_post", avatar_url=None,
    ),
}
_KEYS: Final = tuple(
    each.name for each in fields(ProviderSettings)
    if each.name not in ("provider", "response_mode", "native_client_ids", "emails_endpoint")
)


def is_provider_setting(name: str) -> bool:
    """Whether a variable is one of the family PYLON_OAUTH_<NAME>_..."""
    return FAMILY.fullmatch(name) is not None


def read_providers(
    variables: Mapping[str, str], file: str | None, *, dev_mode: bool,
    native_client_ids: Mapping[str, tuple[str, ...]],
) -> tuple[tuple[ProviderSettings, ...], list[str]]:
    """Read all providers.

    Args:
        variables: those of the family, by name; an empty value counts as not set.
        file: the path of the TOML file, if there is one.
        dev_mode: providers may then be reached by http.
        native_client_ids: by provider, the audiences of ID tokens that native apps send.

    Returns:
        The providers by name, and the problems, one line each.
    """
    problems: list[str] = []
    by_name: dict[str, dict[str, tuple[Any, str]]] = {}
    if file is not None:
        for name, table in _read_file(file, problems):
            by_name[name] = {
                key: (value, f"{file}: providers.{name}.{key}") for key, value in table.items()
            }
    for variable in sorted(variables):
        found = FAMILY.fullmatch(variable)
        if found is not None and variables[variable] != "":
            key = found[2].lower()
            by_name.setdefault(found[1].lower(), {})[_ALIASES.get(key, key)] = (
                variables[variable], variable
            )
    made = []
    for name in sorted(by_name):
        before = len(problems)
        values = {
            key: parsed for key, (value, place) in by_name[name].items()
            if (parsed := _parse(key, value, place, problems)) is not None
        }
        provider = _make(name, values, native_client_ids.get(name, ()))
        problems.extend(_problems(provider, values, dev_mode=dev_mode))
        if len(problems) == before:
            made.append(provider)
    return tuple(made), problems


def _read_file(file: str, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    where = f"PYLON_OAUTH_FILE is {file!r}"
    try:
        with Path(file).open("rb") as opened:
            raw = opened.read(_FILE_BYTES + 1)
    except OSError as ex:
        problems.append(f"{where}, which cannot be read: {ex.strerror or ex}")
        return
    if len(raw) > _FILE_BYTES:
        problems.append(f"{where}, which has more than {_FILE_BYTES} bytes")
        return
    try:
        document = tomllib.loads(raw.decode())
    except UnicodeDecodeError:
        problems.append(f"{where}, which is not UTF-8")
        return
    except tomllib.TOMLDecodeError:  # its text may show a secret
        problems.append(f"{where}, which is no TOML")
        return
    tables = document.get("providers")
    if not isinstance(tables, dict) or set(document) != {"providers"}:
        problems.append(f"{where}: expected tables [providers.<name>] and nothing else")
        return
    for name, table in tables.items():
        if not isinstance(table, dict) or _NAME.fullmatch(name) is None:
            problems.append(
                f"{file}: providers.{name}: expected a table, named by at most 32 lower-case "
                "letters, digits and underscores"
            )
            continue
        for key in sorted(set(table) - set(_KEYS)):
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{file}: providers.{name}.{key} is not a key of a provider{hint}")
        yield name, {key: value for key, value in table.items() if key in _KEYS}


def _parse(key: str, value: Any, place: str, problems: list[str]) -> Any:
    """Return the parsed value of one key; None after a problem."""
    try:
        if key == "store_tokens":
            return value if isinstance(value, bool) else setting_values.boolean(str(value))
        if not isinstance(value, str):
            problems.append(f"{place}: expected a text")
            return None
        if key in ("issuer", "redirect") or key.endswith("_endpoint"):
            return setting_values.url("http", "https")(value)
        if key == "private_key":
            return value.replace("\\n", "\n")  # a variable has one line
        if key == "tenant" and _TENANT.fullmatch(value) is None:
            raise ValueError("expected the id or the domain of a Microsoft tenant")
        return setting_values.token(value)
    except ValueError as ex:
        problems.append(f"{place}: {ex}")
        return None


def _make(name: str, values: Mapping[str, Any], native: tuple[str, ...]) -> ProviderSettings:
    base = PRESETS.get(name)
    if base is None:
        is_oidc = "issuer" in values or "userinfo_endpoint" not in values
        base = ProviderSettings(name) if is_oidc else ProviderSettings(
            name, scopes="", email_verified=None
        )
    made = replace(base, **values, native_client_ids=native)
    if made.issuer is not None and _TENANT_MARK in made.issuer:
        made = replace(made, issuer=made.issuer.replace(_TENANT_MARK, made.tenant or "common"))
    return made


def _problems(
    provider: ProviderSettings, values: Mapping[str, Any], *, dev_mode: bool
) -> Iterator[str]:
    """Yield what a provider lacks. `values`: what was given, beyond the preset."""
    prefix = f"PYLON_OAUTH_{provider.provider.upper()}"
    where = f"the sign-in provider {provider.provider}"
    if not provider.client_id:
        yield f"{where} has no client id: set {prefix}_CLIENT_ID"
    if provider.provider == "apple":
        missing = [key for key in ("team_id", "key_id", "private_key") if key not in values]
        if missing:
            yield (
                f"{where} lacks " + ", ".join(f"{prefix}_{key.upper()}" for key in missing)
                + " (Apple signs in with a key, not with a secret)"
            )
    elif provider.client_secret is None:
        yield f"{where} has no client secret: set {prefix}_CLIENT_SECRET"
    endpoints = (
        provider.authorization_endpoint, provider.token_endpoint, provider.userinfo_endpoint
    )
    if provider.issuer is None and None in endpoints:
        yield (
            f"{where} is not built in: set {prefix}_ISSUER to its OpenID issuer, or "
            "authorization_endpoint, token_endpoint and userinfo_endpoint in PYLON_OAUTH_FILE"
        )
    for url in (provider.issuer, *endpoints, provider.redirect):
        if url is not None and not dev_mode and urlsplit(url).scheme != "https":
            yield f"{where} has the URL {url}: outside dev mode it must begin with https://"
    if provider.issuer is not None and "?" in provider.issuer:
        yield f"{where} has the issuer {provider.issuer}: an issuer has no query"
