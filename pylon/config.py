"""Configuration: reads the settings of `pylon.settings` into a `Config`.

`load` takes the values from the environment, from the env files that `pylon.cli.settings` has
read, else the defaults. `pylonctl config` prints the values with their origins.

Invariants: an empty value means that the setting has its default. The error for a bad value names
the setting, the value and the allowed values. Called by `pylon.cli.settings`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pylon.dotenv import parse_dotenv as parse_dotenv
from pylon.errors import SettingsRefused
from pylon.foreign_settings import find_foreign, judge_foreign
from pylon.provider_settings import ProviderSettings, is_provider_setting, read_providers
from pylon.roles import PORT_BY_ROLE, ROLE_BY_NAME
from pylon.setting_checks import refuse_unsafe as refuse_unsafe
from pylon.setting_values import KeepRules
from pylon.settings import ENV_FILE_NAME, INTERNAL_NAMES, SETTINGS, Setting

_BY_ENV: Final = {s.env: s for s in SETTINGS}


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one run. `SETTINGS` describes the fields."""

    dev_mode: bool
    admin_token: str | None
    admin_token_previous: str | None
    metrics_token: str | None
    secret_key: bytes | None = field(repr=False)
    secret_key_file: str | None
    secret_key_previous: bytes | None = field(repr=False)
    manifest: str
    db_path: str
    database_url: str | None  # of PostgreSQL; None: SQLite
    database_direct_url: str | None
    database_connections: int
    database_wait_s: float
    database_outage_s: float
    database_poll_s: float
    in_memory: bool
    durability: str
    backup_url: str | None
    backup_interval_s: float
    backup_snapshot_hours: int
    backup_keep: KeepRules
    backup_recipients: tuple[str, ...]
    backup_hook: str | None = field(repr=False)
    codegen: str | None
    seed: str | None
    bind: str
    port: int
    ws_port: int
    sse_port: int
    shard_port: int
    roles: tuple[str, ...]
    node: str | None
    region: str | None
    cluster_url: str | None
    http_workers: int
    ws_workers: int
    sse_workers: int
    shard_workers: int
    identity_workers: int
    worker_memory_mib: int
    auth_hash_threads: int
    cors_origin: tuple[str, ...]
    csrf_origins: tuple[str, ...]
    trust_proxy_hops: int
    sockets_per_ip: int
    guests_per_ip_per_min: int
    rate_limit_max: int
    rate_limit_max_authed: int
    rate_limit_window: int
    rate_limit_headers: str
    socket_max_life_s: int
    public_url: str | None
    auth_page: bool
    auth_page_accent: str
    auth_page_surface: str
    ws_url: str | None
    sse_url: str | None
    shard_url: str | None
    cookie_name: str | None
    cookie_domain: str | None
    cookie_secure: bool
    cookie_same_site: str
    webauthn_origin: tuple[str, ...]
    webauthn_rp_id: str | None
    jwt_secret: str | None
    jwt_secret_previous: str | None
    jwt_issuer: str
    jwt_lifetime_s: int
    jwt_jwks_url: str | None
    jwt_jwks_issuer: str | None
    jwt_jwks_audience: tuple[str, ...]
    jwt_issuers_file: str | None
    oauth_file: str | None
    native_callbacks: tuple[str, ...]
    require_email_verification: bool
    auth_rates: bool
    auth_login_ip_per_min: int
    auth_login_account_per_hour: int
    auth_rate_limits: Mapping[str, int]
    email_provider: str | None
    email_from: str | None
    email_smtp_url: str | None
    email_api_key: str | None
    email_endpoint: str | None
    email_folder: str | None
    email_templates_folder: str | None
    email_html: bool
    dashboard_url: str
    login_url: str
    hibp: bool
    pwned_file: str | None
    disposable_file: str | None
    captcha_provider: str | None
    captcha_site_key: str | None
    captcha_secret: str | None = field(repr=False)
    captcha_verify_url: str | None
    captcha_script_url: str | None
    google_native_client_ids: tuple[str, ...]
    apple_native_client_ids: tuple[str, ...]
    app: str | None
    static_dir: str | None
    openapi_public: bool
    files_dir: str | None
    file_max_bytes: int
    file_resumable_max_bytes: int
    files_quota_bytes: int
    files_accel: str | None
    row_max_bytes: int
    change_log_retain: int
    change_log_retain_bytes: int
    disk_floor_bytes: int
    audit_retain_days: int
    guest_retain_days: int
    list_limit: int
    ws_max_message_bytes: int
    ws_deflate: bool
    ws_unscoped_presence: bool
    drain_s: float
    drain_delay_s: float
    drain_spread_s: float
    runtime_dir: str | None
    log_format: str
    log_level: str
    log_max_bytes: int
    access_log: float  # the share of requests that get a log line
    otel_endpoint: str | None  # of a collector, for traces
    otel_headers: tuple[tuple[str, str], ...] = field(repr=False)
    otel_sample: float  # the share of requests that begin a trace
    slow_query_s: float  # a longer read of rows is counted as slow and logged
    sign_in_providers: tuple[ProviderSettings, ...] = ()  # of PYLON_OAUTH_FILE and PYLON_OAUTH_*
    email_templates: Mapping[str, str] = field(default_factory=dict)  # PYLON_EMAIL_TEMPLATE_*
    bucket_access: Mapping[str, str] = field(default_factory=dict, repr=False)  # AWS_*

    def port_of(self, role: str) -> int:
        """Return the port of a role of `PORT_BY_ROLE`."""
        entry = PORT_BY_ROLE[role]
        return int(getattr(self, entry.field)) or self.port + entry.offset

    def workers_of(self, role: str) -> int:
        """Return the number of processes of the role on this node; 0: the role is off."""
        entry = ROLE_BY_NAME[role]
        if (entry.runs_with or role) not in self.roles:
            return 0
        return int(getattr(self, entry.workers_field))

    @property
    def data_dir(self) -> Path:
        return Path(self.db_path).absolute().parent

    @property
    def files_folder(self) -> Path:
        """Return the folder of files."""
        if self.files_dir is not None:
            return Path(self.files_dir).absolute()
        return self.data_dir / "files"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A `Config`, the origin of each value, and messages for the operator."""

    config: Config
    raw: dict[str, str | None]  # by variable name, as text
    # by variable name: "environment", path of a .env file, "default", "dev default", ...
    origin: dict[str, str]
    warnings: tuple[str, ...]
    refusals: tuple[str, ...] = ()  # a start refuses these; other verbs ignore them


Sources = list[tuple[str, Mapping[str, str]]]  # named sources, by descending precedence


def load(
    environ: Mapping[str, str], dotenv: Mapping[str, str] | None = None, dotenv_path: str = ".env"
) -> Loaded:
    """Read the table. The environment wins over `dotenv`, which wins over defaults.

    Raises:
        SettingsRefused: some values are invalid; one line for each, with value and remedy.
    """
    sources: Sources = [("environment", environ)]
    if dotenv:
        sources.append((dotenv_path, dotenv))
    problems: list[str] = []
    is_dev = _BY_ENV["PYLON_DEV_MODE"]
    dev, _, _ = _read(is_dev, sources, False, problems)
    problems.clear()  # the loop over the table reports it
    values: dict[str, Any] = {}
    raw: dict[str, str | None] = {}
    origin_by_env: dict[str, str] = {}
    for setting in SETTINGS:
        value, raw[setting.env], origin_by_env[setting.env] = _read(
            setting, sources, dev, problems
        )
        values[setting.field] = value
    named, origin_of_named = _family_variables(sources, is_provider_setting)
    providers, found = read_providers(
        named, values["oauth_file"], dev_mode=values["dev_mode"], native_client_ids={
            name: values[f"{name}_native_client_ids"] for name in ("google", "apple")
        },
    )
    problems.extend(found)
    raw.update(named)
    origin_by_env.update(origin_of_named)
    texts, origin_of_texts = _family_variables(sources, is_template_setting)
    raw.update(texts)
    origin_by_env.update(origin_of_texts)
    access, _ = _family_variables(sources, is_bucket_access)
    config = Config(
        **values, sign_in_providers=providers, email_templates=texts, bucket_access=access
    )
    judged = list(judge_foreign(sources, dev_mode=config.dev_mode))
    loaded = Loaded(
        config, raw, origin_by_env,
        warnings=(
            *_unknown_names(sources), *(text for refused, text in judged if not refused),
            *_warnings(config),
        ),
        refusals=tuple(text for refused, text in judged if refused),
    )
    if problems:
        raise SettingsRefused(problems, loaded)
    return loaded


def _read(
    setting: Setting, sources: Sources, dev: bool, problems: list[str]
) -> tuple[Any, str | None, str]:
    """Return the value, its text and its origin. A bad value adds a problem; the default applies.

    The first source that names the setting decides, even with an empty value. So an empty
    variable of the environment cancels a line of a `.env` file.
    """
    default, where = setting.default, "default"
    if dev and setting.dev_default is not None:
        default, where = setting.dev_default, "dev default"
    given = next(((name, source) for name, source in sources if setting.env in source), None)
    if given is not None and given[1][setting.env] != "":
        raw = given[1][setting.env]
        try:
            return setting.parse(raw), raw, given[0]
        except ValueError as ex:
            shown = "(hidden)" if setting.secret else repr(raw)
            problems.append(f"{setting.env} is {shown}: {ex}")
    return None if default is None else setting.parse(default), default, where


def is_template_setting(name: str) -> bool:
    """Whether a variable is one of the family PYLON_EMAIL_TEMPLATE_<KIND>_SUBJECT and _BODY."""
    return name.startswith("PYLON_EMAIL_TEMPLATE_")


def is_bucket_access(name: str) -> bool:
    """Whether a variable is one by which all tools reach a bucket: AWS_ACCESS_KEY_ID and so on."""
    return name.startswith("AWS_")


def _family_variables(
    sources: Sources, belongs: Callable[[str], bool]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the variables of a family, and their origins. The first source decides."""
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    for where, source in sources:
        for name in sorted(source):
            if belongs(name) and name not in values:
                values[name], origins[name] = source[name], where
    return values, origins


def _unknown_names(sources: Sources) -> list[str]:
    found = []
    for where, source in sources:
        for name in sorted(source):
            if not name.startswith("PYLON_") or name in _BY_ENV or name in INTERNAL_NAMES:
                continue
            if is_provider_setting(name) or is_template_setting(name):
                continue
            if name == ENV_FILE_NAME and where == "environment":
                continue
            if find_foreign(name) is None:
                near = difflib.get_close_matches(name, _BY_ENV, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                found.append(f"{name} (from {where}) is not a setting and is ignored{hint}")
    return found


# Variables that the supervisor sets for its children, and that tests use; not settings.

_ADMIN_TOKEN_MIN_CHARS: Final = 32


def _warnings(config: Config) -> list[str]:
    if config.dev_mode:
        return []
    found = []
    if config.admin_token is None:
        found.append("PYLON_ADMIN_TOKEN is not set: nobody can be admin")
    elif len(config.admin_token) < _ADMIN_TOKEN_MIN_CHARS:
        found.append(
            f"PYLON_ADMIN_TOKEN has {len(config.admin_token)} characters; "
            f"use at least {_ADMIN_TOKEN_MIN_CHARS} (for example: openssl rand -hex 32)"
        )
    if config.email_provider == "console":
        found.append(
            "PYLON_EMAIL_PROVIDER is console, which sends nothing outside dev mode: sign-in by "
            "mail answers EMAIL_NOT_CONFIGURED; set smtp, webhook, resend or sendgrid"
        )
    return found
