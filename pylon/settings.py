"""Settings: the table of all settings of Pylon, with name, parser, default and help.

A new setting is one line here and one attribute of `pylon.config.Config`. `pylon.config.load` reads
the values. The settings table of the README is generated from this table.

Invariants: names and fields are unique. No module reads a `PYLON_*` variable but `pylon.config`,
except `INTERNAL_NAMES`, which the supervisor sets for its children, and `ENV_FILE_NAME`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from pylon.database_url import chosen_database, postgres_url, shown_url
from pylon.roles import CHOSEN_ROLES
from pylon.setting_values import (
    Parser,
    address,
    archive_url,
    cluster_url,
    colour,
    cookie_domain,
    cookie_name,
    db_path,
    header_fields,
    keep_rules,
    mailbox,
    native_callbacks,
    node_name,
    origins,
    passkey_origins,
    rate_limits,
    region_name,
    role_names,
    secret_key,
    smtp_url,
    token,
    url,
    url_or_path,
    words,
)
from pylon.setting_values import boolean as _bool
from pylon.setting_values import choice as _choice
from pylon.setting_values import decimal as _float
from pylon.setting_values import integer as _int
from pylon.setting_values import text as _text


class Setting(msgspec.Struct, frozen=True):
    """One line of the table. `env`: the whole variable name; `field`: the attribute of `Config`."""

    env: str
    field: str
    parse: Parser
    default: str | None
    help: str
    dev_default: str | None = None  # used instead of `default` when dev mode is on
    secret: bool = False
    shown: Callable[[str], str] | None = None  # the part of a secret that may be printed

    @property
    def change(self) -> Literal["workers", "server", "restart"]:
        """Return what a changed value needs: a reload, which replaces the workers or begins the
        server anew within its process; or a restart."""
        if self.env in _NEED_RESTART:
            return "restart"
        return "workers" if self.env in _NEED_WORKERS else "server"


# Where the server is, and its keys.
_NEED_RESTART: Final = frozenset({
    "PYLON_DEV_MODE", "PYLON_DB_PATH", "DATABASE_URL", "PYLON_DATABASE_DIRECT_URL",
    "PYLON_IN_MEMORY", "PYLON_BIND", "PYLON_PORT", "PYLON_WS_PORT", "PYLON_SSE_PORT",
    "PYLON_SHARD_PORT", "PYLON_NODE", "PYLON_REGION", "PYLON_CLUSTER_URL", "PYLON_RUNTIME_DIR",
    "PYLON_SECRET_KEY", "PYLON_SECRET_KEY_FILE", "PYLON_SECRET_KEY_PREVIOUS", "PYLON_ROLES",
})
# No part of the supervisor uses these: it is enough to replace the workers.
_NEED_WORKERS: Final = frozenset({
    "PYLON_ADMIN_TOKEN", "PYLON_ADMIN_TOKEN_PREVIOUS", "PYLON_METRICS_TOKEN",
    "PYLON_HTTP_WORKERS", "PYLON_WS_WORKERS", "PYLON_SSE_WORKERS", "PYLON_SHARD_WORKERS",
    "PYLON_IDENTITY_WORKERS", "PYLON_AUTH_HASH_THREADS", "PYLON_CORS_ORIGIN",
    "PYLON_CSRF_ORIGINS", "PYLON_TRUST_PROXY_HOPS", "PYLON_SOCKETS_PER_IP",
    "PYLON_GUESTS_PER_IP_PER_MIN", "PYLON_RATE_LIMIT_MAX", "PYLON_RATE_LIMIT_MAX_AUTHED",
    "PYLON_RATE_LIMIT_WINDOW", "PYLON_RATE_LIMIT_HEADERS", "PYLON_SOCKET_MAX_LIFE_S",
    "PYLON_PUBLIC_URL", "PYLON_AUTH_PAGE_ACCENT", "PYLON_AUTH_PAGE_SURFACE", "PYLON_WS_URL",
    "PYLON_SSE_URL", "PYLON_SHARD_URL", "PYLON_COOKIE_NAME", "PYLON_COOKIE_DOMAIN",
    "PYLON_COOKIE_SECURE", "PYLON_COOKIE_SAME_SITE", "PYLON_WEBAUTHN_ORIGIN",
    "PYLON_WEBAUTHN_RP_ID", "PYLON_JWT_SECRET", "PYLON_JWT_SECRET_PREVIOUS", "PYLON_JWT_ISSUER",
    "PYLON_JWT_LIFETIME_SECS", "PYLON_JWT_JWKS_URL", "PYLON_JWT_JWKS_ISSUER",
    "PYLON_JWT_JWKS_AUDIENCE", "PYLON_OAUTH_FILE", "PYLON_REQUIRE_EMAIL_VERIFICATION",
    "PYLON_AUTH_RATES", "PYLON_EMAIL_PROVIDER", "PYLON_EMAIL_FROM", "PYLON_EMAIL_SMTP_URL",
    "PYLON_EMAIL_API_KEY", "PYLON_EMAIL_ENDPOINT", "PYLON_EMAIL_FOLDER",
    "PYLON_EMAIL_TEMPLATES", "PYLON_DASHBOARD_URL", "PYLON_LOGIN_URL", "PYLON_HIBP",
    "PYLON_PWNED_FILE", "PYLON_GOOGLE_NATIVE_CLIENT_IDS", "PYLON_APPLE_NATIVE_CLIENT_IDS",
    "PYLON_APP", "PYLON_STATIC_DIR", "PYLON_OPENAPI_PUBLIC", "PYLON_LIST_LIMIT",
    "PYLON_WS_MAX_MESSAGE_BYTES", "PYLON_WS_DEFLATE", "PYLON_WS_UNSCOPED_PRESENCE",
    "PYLON_DRAIN_SPREAD_S", "PYLON_SLOW_QUERY_S", "PYLON_FILES_DIR", "PYLON_FILE_MAX_BYTES",
    "PYLON_FILE_RESUMABLE_MAX_BYTES", "PYLON_FILES_QUOTA_BYTES", "PYLON_FILES_ACCEL",
})


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting("PYLON_DEV_MODE", "dev_mode", _bool, "false",
            "Open defaults for a developer's machine. Never on a server."),
    Setting("PYLON_ADMIN_TOKEN", "admin_token", token, None,
            "Bearer token that grants admin. Mandatory in dev mode.", secret=True),
    Setting("PYLON_ADMIN_TOKEN_PREVIOUS", "admin_token_previous", token, None,
            "The admin token before, which counts too while clients change to the new one.",
            secret=True),
    Setting("PYLON_METRICS_TOKEN", "metrics_token", token, None,
            "Bearer token that may read /metrics and nothing else.", secret=True),
    Setting("PYLON_SECRET_KEY", "secret_key", secret_key, None,
            "32 random bytes, in hex or base64: the key of codes and encrypted values of sign-in. "
            "Mandatory with DATABASE_URL, the same on all nodes; else the first start makes "
            "secret.key beside the database.", secret=True),
    Setting("PYLON_SECRET_KEY_FILE", "secret_key_file", _text, None,
            "A file with the secret key, in place of PYLON_SECRET_KEY; further lines are keys "
            "before."),
    Setting("PYLON_SECRET_KEY_PREVIOUS", "secret_key_previous", secret_key, None,
            "The secret key before, which opens what it has encrypted.", secret=True),
    Setting("PYLON_MANIFEST", "manifest", _text, "pylon.manifest.json",
            "The app's manifest."),
    Setting("PYLON_DB_PATH", "db_path", db_path, ".pylon/dev.db",
            "The SQLite database file; its folder is the data directory."),
    Setting("DATABASE_URL", "database_url", chosen_database, None,
            "postgres://user:password@host:5432/database keeps the data in PostgreSQL, in place of "
            "the SQLite file.", secret=True, shown=shown_url),
    Setting("PYLON_DATABASE_DIRECT_URL", "database_direct_url", postgres_url, None,
            "The same database without a connection pooler between, where DATABASE_URL goes "
            "through one: for writes, for news of changes and for the locks.",
            secret=True, shown=shown_url),
    Setting("PYLON_DATABASE_CONNECTIONS", "database_connections", _int(1, 64), "3",
            "Connections of each worker to PostgreSQL for reads that may be long. Each worker has "
            "up to three more for short reads, the supervisor has four."),
    Setting("PYLON_DATABASE_WAIT_S", "database_wait_s", _float(0, 3600), "60",
            "How long a start waits for PostgreSQL; then it ends with exit code 75."),
    Setting("PYLON_DATABASE_OUTAGE_S", "database_outage_s", _float(1, 3600), "60",
            "How long sockets stay open while PostgreSQL does not answer. Then they are closed, "
            "and new ones are refused until it answers again."),
    Setting("PYLON_DATABASE_POLL_S", "database_poll_s", _float(0.05, 60), "1",
            "How often a node reads the change log of PostgreSQL although it was told of no "
            "change."),
    Setting("PYLON_IN_MEMORY", "in_memory", _bool, "false",
            "Keep the database in memory and forget it at exit (tests)."),
    Setting("PYLON_DURABILITY", "durability", _choice("normal", "full"), "normal",
            "normal: survives the death of every process; full: also loss of power."),
    Setting("PYLON_BACKUP_URL", "backup_url", archive_url, None,
            "Where the server backs up continuously: file:///folder or s3://bucket/prefix "
            "(docs/operations/backup.md). SQLite only."),
    Setting("PYLON_BACKUP_INTERVAL_S", "backup_interval_s", _float(1, 3600), "5",
            "How often the server captures what was committed, for PYLON_BACKUP_URL."),
    Setting("PYLON_BACKUP_SNAPSHOT_HOURS", "backup_snapshot_hours", _int(1, 8_760), "24",
            "Hours between two whole copies in PYLON_BACKUP_URL. A restore replays what was "
            "committed after one."),
    Setting("PYLON_BACKUP_KEEP", "backup_keep", keep_rules,
            "days=7,daily=14,weekly=8,monthly=12",
            "What PYLON_BACKUP_URL keeps: every moment of the last days, and a copy for each of so "
            "many days, weeks and months."),
    Setting("PYLON_BACKUP_RECIPIENTS", "backup_recipients", words, "",
            "Comma list of age recipients (age1…): what goes to PYLON_BACKUP_URL is encrypted for "
            "them. The server cannot read it back."),
    Setting("PYLON_BACKUP_HOOK", "backup_hook", _text, None,
            "A command, or a URL for a POST, that is told when a backup fails and when it works "
            "again.", secret=True),
    Setting("PYLON_CODEGEN", "codegen", _text, None,
            "What pylonctl dev writes when the manifest changes, such as "
            "ts:web/pylon.ts,python:models.py (docs/codegen.md)."),
    Setting("PYLON_SEED", "seed", _text, None,
            "A JSON file {Entity: [rows]} that is inserted once, into an empty database."),
    Setting("PYLON_BIND", "bind", address, "0.0.0.0",  # nosec B104 # a server; dev: loopback
            "Address that all ports listen on.", dev_default="127.0.0.1"),
    Setting("PYLON_PORT", "port", _int(1, 65535), "4321",
            "HTTP port P; the others default to P+1, P+2 and P+3."),
    Setting("PYLON_WS_PORT", "ws_port", _int(0, 65535), "0",
            "WebSocket port; 0 means PYLON_PORT + 1."),
    Setting("PYLON_SSE_PORT", "sse_port", _int(0, 65535), "0",
            "Server-sent events port; 0 means PYLON_PORT + 2."),
    Setting("PYLON_SHARD_PORT", "shard_port", _int(0, 65535), "0",
            "Realtime shards port; 0 means PYLON_PORT + 3."),
    Setting("PYLON_ROLES", "roles", role_names, ",".join(CHOSEN_ROLES),
            "The roles that this node runs, as a comma list. Others may run on other nodes of the "
            "same PostgreSQL database."),
    Setting("PYLON_NODE", "node", node_name, None,
            "The name of this node among those that share a PostgreSQL database; default is the "
            "host name with four random digits, kept in the data directory."),
    Setting("PYLON_REGION", "region", region_name, None,
            "The region of this node. A shard is placed in the region that its params name, else "
            "in the region of the node that makes it."),
    Setting("PYLON_CLUSTER_URL", "cluster_url", cluster_url, None,
            "tcp://host:port by which other nodes reach the shards of this one. Shards worker n "
            "listens on the port plus n - 1, encrypted. Needed with shards on more than one node."),
    Setting("PYLON_HTTP_WORKERS", "http_workers", _int(1, 64), "2",
            "HTTP worker processes."),
    Setting("PYLON_WS_WORKERS", "ws_workers", _int(0, 64), "1",
            "WebSocket worker processes; 0 switches the role off."),
    Setting("PYLON_SSE_WORKERS", "sse_workers", _int(0, 64), "1",
            "SSE worker processes; 0 switches the role off."),
    Setting("PYLON_SHARD_WORKERS", "shard_workers", _int(0, 64), "1",
            "Shard worker processes; 0 switches the role off."),
    Setting("PYLON_IDENTITY_WORKERS", "identity_workers", _int(0, 1), "1",
            "Processes for sign-in, passwords and mail, on each node with the role http. With 0 "
            "those requests answer 503."),
    Setting("PYLON_WORKER_MEMORY_MIB", "worker_memory_mib", _int(0, 1_048_576), "0",
            "Private memory, in MiB, above which a worker finishes its requests and is replaced; "
            "0 means never. Below MemoryMax of the unit, divided by the number of workers."),
    Setting("PYLON_AUTH_HASH_THREADS", "auth_hash_threads", _int(0, 64), "0",
            "Threads of the identity process that hash passwords; 0 means half of the cores. Each "
            "takes 19 MiB while it hashes."),
    Setting("PYLON_CORS_ORIGIN", "cors_origin", origins, "",
            "The web app's origin, or a comma list of origins: pages that may read answers, send "
            "writes and use the session cookie, for example https://app.example.com. Mandatory "
            "outside dev mode; dev mode also trusts every loopback origin.",
            dev_default="*"),
    Setting("PYLON_CSRF_ORIGINS", "csrf_origins", origins, "",
            "Comma list of further origins that are trusted as those of PYLON_CORS_ORIGIN are."),
    Setting("PYLON_TRUST_PROXY_HOPS", "trust_proxy_hops", _int(0, 16), "0",
            "Number of trusted proxies in front: the client is the N-th entry from the right of "
            "X-Forwarded-For; with fewer entries it is the connection's address."),
    Setting("PYLON_SOCKETS_PER_IP", "sockets_per_ip", _int(0, 1_000_000), "64",
            "Open sockets of one client address on each port (an IPv6 client counts by its /64); "
            "0 means no limit.",
            dev_default="0"),
    Setting("PYLON_GUESTS_PER_IP_PER_MIN", "guests_per_ip_per_min", _int(0, 1_000_000), "30",
            "New guest sessions of one client address in a minute, and ten times as many at once "
            "(an IPv6 client counts by its /64); 0 means no limit.", dev_default="0"),
    Setting("PYLON_RATE_LIMIT_MAX", "rate_limit_max", _int(0, 1_000_000_000), "600",
            "Requests of one client address in PYLON_RATE_LIMIT_WINDOW (an IPv6 client counts by "
            "its /64, and a /48 may send four times as many), also a new socket; administrators "
            "and probes do not count. 0 means no limit.", dev_default="100000"),
    Setting("PYLON_RATE_LIMIT_MAX_AUTHED", "rate_limit_max_authed", _int(0, 1_000_000_000), "1000",
            "Requests of one user or guest in PYLON_RATE_LIMIT_WINDOW, from all addresses; 0 means "
            "no limit.", dev_default="100000"),
    Setting("PYLON_RATE_LIMIT_WINDOW", "rate_limit_window", _int(1, 86_400), "60",
            "Seconds of PYLON_RATE_LIMIT_MAX and PYLON_RATE_LIMIT_MAX_AUTHED."),
    Setting("PYLON_RATE_LIMIT_HEADERS", "rate_limit_headers",
            _choice("always", "low", "never"), "low",
            "The responses that tell what a rate has left (RateLimit, RateLimit-Policy): all, "
            "those with less than half left, or only a 429."),
    Setting("PYLON_SOCKET_MAX_LIFE_S", "socket_max_life_s", _int(0, 31_536_000), "0",
            "Seconds after which the server closes a socket, so that its client connects anew. "
            "Each socket lasts between three quarters of this and all of it. 0 means never."),
    Setting("PYLON_PUBLIC_URL", "public_url", url("http", "https"), None,
            "Base URL that clients reach the HTTP port by, e.g. https://api.example.com."),
    Setting("PYLON_AUTH_PAGE", "auth_page", _bool, "true",
            "Serve the sign-in page below /auth/ and the page of a reset link. false: an app has "
            "pages of its own."),
    Setting("PYLON_AUTH_PAGE_ACCENT", "auth_page_accent", colour, "#1f5fbf",
            "Colour of the buttons of the sign-in page, as #rrggbb."),
    Setting("PYLON_AUTH_PAGE_SURFACE", "auth_page_surface", colour, "#ffffff",
            "Colour of the ground of the sign-in page, as #rrggbb."),
    Setting("PYLON_WS_URL", "ws_url", url("ws", "wss"), None,
            "WebSocket URL that the server gives clients, e.g. wss://api.example.com/ws."),
    Setting("PYLON_SSE_URL", "sse_url", url("http", "https"), None,
            "SSE URL that the server gives clients."),
    Setting("PYLON_SHARD_URL", "shard_url", url("ws", "wss"), None,
            "Shards URL that the server gives clients."),
    Setting("PYLON_COOKIE_NAME", "cookie_name", cookie_name, None,
            "Session cookie; default is <app name>_session."),
    Setting("PYLON_COOKIE_DOMAIN", "cookie_domain", cookie_domain, None,
            "Domain of the session cookie."),
    Setting("PYLON_COOKIE_SECURE", "cookie_secure", _bool, "true",
            "Send the session cookie over TLS only.", dev_default="false"),
    Setting("PYLON_COOKIE_SAME_SITE", "cookie_same_site", _choice("lax", "strict", "none"), "lax",
            "SameSite attribute of the session cookie; none forces Secure."),
    Setting("PYLON_WEBAUTHN_ORIGIN", "webauthn_origin", passkey_origins, "",
            "Comma list of the origins of the pages that use passkeys, e.g. "
            "https://app.example.com, and of Android apps, as android:apk-key-hash:<hash>. Without "
            "it there are none; in dev mode pages of localhost use them."),
    Setting("PYLON_WEBAUTHN_RP_ID", "webauthn_rp_id", cookie_domain, None,
            "Domain that passkeys belong to: that of all these origins, or one above it. Default: "
            "the host of the first origin. Passkeys do not survive its change."),
    Setting("PYLON_JWT_SECRET", "jwt_secret", token, None,
            "Secret of 32 characters or more that signs JWTs (HS256). Without it the server makes "
            "none (docs/jwt.md).", secret=True),
    Setting("PYLON_JWT_SECRET_PREVIOUS", "jwt_secret_previous", token, None,
            "The secret before; its JWTs still count during a change.", secret=True),
    Setting("PYLON_JWT_ISSUER", "jwt_issuer", _text, "pylon",
            "Issuer (iss) of the JWTs of PYLON_JWT_SECRET."),
    Setting("PYLON_JWT_LIFETIME_SECS", "jwt_lifetime_s", _int(60, 31_536_000), "3600",
            "Seconds for which a JWT lasts, if its maker asks for no less."),
    Setting("PYLON_JWT_JWKS_URL", "jwt_jwks_url", url("http", "https"), None,
            "URL of the public keys of another issuer, whose JWTs (RS256, ES256) count too."),
    Setting("PYLON_JWT_JWKS_ISSUER", "jwt_jwks_issuer", _text, None,
            "Issuer (iss) of these JWTs, exactly."),
    Setting("PYLON_JWT_JWKS_AUDIENCE", "jwt_jwks_audience", words, "",
            "Comma list of the audiences (aud) of which these JWTs must name one."),
    Setting("PYLON_JWT_ISSUERS_FILE", "jwt_issuers_file", _text, None,
            "A TOML file with a table [issuers.<name>] for each further issuer: issuer, jwks_url, "
            "audience (docs/jwt.md)."),
    Setting("PYLON_OAUTH_FILE", "oauth_file", _text, None,
            "A TOML file with a table [providers.<name>] for each sign-in provider. The variables "
            "PYLON_OAUTH_<NAME>_CLIENT_ID, _CLIENT_SECRET and so on win over it "
            "(docs/sign-in-providers.md)."),
    Setting("PYLON_NATIVE_CALLBACKS", "native_callbacks", native_callbacks, "",
            "Comma list of URLs of native apps that a sign-in with a provider may return to, "
            "exactly, e.g. com.example.app:/auth (docs/sign-in-providers.md)."),
    Setting("PYLON_REQUIRE_EMAIL_VERIFICATION", "require_email_verification", _bool, "false",
            "Accounts with a password sign in only once their address is confirmed, and "
            "registration answers the same for new and taken addresses."),
    Setting("PYLON_AUTH_RATES", "auth_rates", _bool, "true",
            "Limit attempts at passwords and codes, and mails, by address and account "
            "(docs/limits.md).", dev_default="false"),
    Setting("PYLON_AUTH_LOGIN_IP_PER_MIN", "auth_login_ip_per_min", _int(1, 100_000), "5",
            "Sign-ins by password that one address may try in a minute."),
    Setting("PYLON_AUTH_LOGIN_ACCOUNT_PER_HOUR", "auth_login_account_per_hour",
            _int(1, 100_000), "100",
            "Wrong passwords in an hour for one account, from devices in which its user has not "
            "signed in before."),
    Setting("PYLON_AUTH_RATE_LIMITS", "auth_rate_limits", rate_limits, "",
            "Comma list of other limits for the rates of sign-in, by their names in "
            "docs/limits.md, for example register_ip=100,send_ip=20."),
    Setting("PYLON_EMAIL_PROVIDER", "email_provider",
            _choice("console", "file", "smtp", "webhook", "resend", "sendgrid"), None,
            "What sends the mails of sign-in (docs/mail.md); console prints them, in dev mode "
            "only.",
            dev_default="console"),
    Setting("PYLON_EMAIL_FROM", "email_from", mailbox, None,
            "The sender of mails, for example My App <noreply@example.com>."),
    Setting("PYLON_EMAIL_SMTP_URL", "email_smtp_url", smtp_url, None,
            "smtps://user:password@host:465, or smtp://user:password@host:587 with STARTTLS.",
            secret=True, shown=shown_url),
    Setting("PYLON_EMAIL_API_KEY", "email_api_key", token, None,
            "The key for webhook, resend or sendgrid, sent as a bearer token.", secret=True),
    Setting("PYLON_EMAIL_ENDPOINT", "email_endpoint", url("http", "https"), None,
            "The URL of webhook; replaces the URL of resend or sendgrid."),
    Setting("PYLON_EMAIL_FOLDER", "email_folder", _text, None,
            "The folder into which the provider file writes mails."),
    Setting("PYLON_EMAIL_TEMPLATES", "email_templates_folder", _text, None,
            "A folder with the texts of mails, as magic_code.txt and magic_code.html. "
            "PYLON_EMAIL_TEMPLATE_MAGIC_CODE_SUBJECT and _BODY win over it."),
    Setting("PYLON_EMAIL_HTML", "email_html", _bool, "true",
            "Give each mail an HTML part, made of its text unless the folder of texts has a file "
            "for it. false: only mails with such a file have one."),
    Setting("PYLON_DASHBOARD_URL", "dashboard_url", url_or_path, "/",
            "Where a browser goes after a magic link that named no page."),
    Setting("PYLON_LOGIN_URL", "login_url", url_or_path, "/auth/",
            "The page to sign in at, for the link of an invite. It gets the link as `next`."),
    Setting("PYLON_HIBP", "hibp", _bool, "false",
            "Ask Have I Been Pwned whether a new password was stolen. It gets five digits of the "
            "hash; without its answer within 2 s the password is accepted."),
    Setting("PYLON_PWNED_FILE", "pwned_file", _text, None,
            "A sorted file of SHA-1 hashes of stolen passwords, for example that of Have I Been "
            "Pwned ordered by hash; a new password that is in it is refused."),
    Setting("PYLON_DISPOSABLE_FILE", "disposable_file", _text, None,
            "A file with a domain on each line, of which no new account may have its address: "
            "mailboxes for ten minutes (docs/auth.md)."),
    Setting("PYLON_CAPTCHA_PROVIDER", "captcha_provider", _choice("turnstile", "hcaptcha"), None,
            "The service of which registrations, and mails that anybody may ask for, need a "
            "captcha (docs/auth.md)."),
    Setting("PYLON_CAPTCHA_SITE_KEY", "captcha_site_key", token, None,
            "The public key of the service, for the widget of the sign-in page."),
    Setting("PYLON_CAPTCHA_SECRET", "captcha_secret", token, None,
            "The secret of the service, by which this server asks about captchas.", secret=True),
    Setting("PYLON_CAPTCHA_VERIFY_URL", "captcha_verify_url", url("http", "https"), None,
            "The URL of another service with the same protocol (siteverify)."),
    Setting("PYLON_CAPTCHA_SCRIPT_URL", "captcha_script_url", url("http", "https"), None,
            "The URL of that service's widget."),
    Setting("PYLON_GOOGLE_NATIVE_CLIENT_IDS", "google_native_client_ids", words, "",
            "Comma list of client ids of native apps, whose ID tokens of Google sign in."),
    Setting("PYLON_APPLE_NATIVE_CLIENT_IDS", "apple_native_client_ids", words, "",
            "Comma list of bundle ids of native apps, whose ID tokens of Apple sign in."),
    Setting("PYLON_APP", "app", _text, None,
            "The app's Python file: its shards and matchmaking, e.g. game.py."),
    Setting("PYLON_STATIC_DIR", "static_dir", _text, None,
            "Folder of files to serve under /app/."),
    Setting("PYLON_OPENAPI_PUBLIC", "openapi_public", _bool, "false",
            "Serve /api/openapi.json to everybody, not to admins only; dev mode always does."),
    Setting("PYLON_FILES_DIR", "files_dir", _text, None,
            "Folder of the files that clients upload; default is files in the data directory. "
            "Nodes that share a database need one folder that all of them reach."),
    Setting("PYLON_FILE_MAX_BYTES", "file_max_bytes", _int(1, 1_099_511_627_776), "104857600",
            "Largest file that comes in one request, in bytes."),
    Setting("PYLON_FILE_RESUMABLE_MAX_BYTES", "file_resumable_max_bytes",
            _int(1, 109_951_162_777_600), "5368709120",
            "Largest file of a resumable upload (tus), in bytes."),
    Setting("PYLON_FILES_QUOTA_BYTES", "files_quota_bytes", _int(0, 109_951_162_777_600), "0",
            "Bytes that the files of one user may take together, unfinished uploads included; 0 "
            "means no limit."),
    Setting("PYLON_FILES_ACCEL", "files_accel", _text, None,
            "Path of nginx's internal location for PYLON_FILES_DIR, for example /protected/: nginx "
            "then sends the bytes of files (X-Accel-Redirect)."),
    Setting("PYLON_ROW_MAX_BYTES", "row_max_bytes", _int(1_024, 10_485_760), "1048576",
            "Largest size of a row as JSON, in bytes. Clients can read, delete and shrink larger "
            "rows that exist already."),
    Setting("PYLON_CHANGE_LOG_RETAIN", "change_log_retain", _int(1_000, 100_000_000), "100000",
            "Change events kept; events younger than two minutes are kept in any case."),
    Setting("PYLON_CHANGE_LOG_RETAIN_BYTES", "change_log_retain_bytes",
            _int(1_048_576, 1_099_511_627_776), "268435456",
            "Largest size of the change events kept, in bytes. Events of the last two minutes may "
            "take four times as many; beyond that, clients that missed them pull everything "
            "again."),
    Setting("PYLON_DISK_FLOOR_BYTES", "disk_floor_bytes", _int(0, 1_099_511_627_776), "67108864",
            "Free bytes of the database's disk below which the server refuses writes (503 "
            "`DISK_FULL`) and answers reads; 0 switches this off. SQLite only."),
    Setting("PYLON_AUDIT_RETAIN_DAYS", "audit_retain_days", _int(1, 36_500), "90",
            "Days for which the records of sign-ins and changes of accounts are kept."),
    Setting("PYLON_GUEST_RETAIN_DAYS", "guest_retain_days", _int(0, 36_500), "0",
            "Days without a request after which a guest session is deleted; 0 means when it "
            "expires. An open socket is no request."),
    Setting("PYLON_LIST_LIMIT", "list_limit", _int(1, 100_000), "1000",
            "Largest number of rows in the response to a list or query."),
    Setting("PYLON_WS_MAX_MESSAGE_BYTES", "ws_max_message_bytes", _int(1_024, 16_777_216),
            "1048576", "Largest WebSocket message that a client may send."),
    Setting("PYLON_WS_DEFLATE", "ws_deflate", _bool, "true",
            "Agree to permessage-deflate with WebSocket clients that offer it, as browsers do."),
    Setting("PYLON_WS_UNSCOPED_PRESENCE", "ws_unscoped_presence", _bool, "false",
            "Relay presence and topic messages without a room, and every disconnect, to every "
            "WebSocket client, as old servers did. Costs N messages for each."),
    Setting("PYLON_DRAIN_SECS", "drain_s", _float(0, 3600), "30",
            "How long SIGTERM waits for requests in flight."),
    Setting("PYLON_DRAIN_DELAY_S", "drain_delay_s", _float(0, 3600), "0",
            "How long /readyz answers 503 before the ports close (for load balancers)."),
    Setting("PYLON_DRAIN_SPREAD_S", "drain_spread_s", _float(0, 600), "2",
            "Over how many seconds at the most a drain closes its sockets, so that their clients "
            "do not come back together. It closes 200 a second or more. A reload and a scaling "
            "also leave idle HTTP connections open for so long."),
    Setting("PYLON_RUNTIME_DIR", "runtime_dir", _text, None,
            "Folder of the process sockets; default $RUNTIME_DIRECTORY, else a private folder in "
            "the temp directory."),
    Setting("PYLON_LOG_FORMAT", "log_format", _choice("json", "pretty"), "json",
            "Log lines as JSON objects (json) or as text for people (pretty).",
            dev_default="pretty"),
    Setting("PYLON_LOG_LEVEL", "log_level", _choice("debug", "info", "warning", "error"), "info",
            "Least severe log line shown."),
    Setting("PYLON_LOG_MAX_BYTES", "log_max_bytes", _int(0, 1_099_511_627_776), "67108864",
            "Size at which the log file of `pylonctl start --detach` is rotated; five older files "
            "are kept. 0 means never."),
    Setting("PYLON_ACCESS_LOG", "access_log", _float(0, 1), "0",
            "Share of the requests that get a line in the log (request.answered): 0 none, 0.01 one "
            "of a hundred, 1 all."),
    Setting("PYLON_OTEL_ENDPOINT", "otel_endpoint", url("http", "https"), None,
            "URL of an OpenTelemetry collector for traces (OTLP over HTTP), for example "
            "http://127.0.0.1:4318/v1/traces. Needs pip install 'pylon-server[otel]'."),
    Setting("PYLON_OTEL_HEADERS", "otel_headers", header_fields, "",
            "Header fields for the collector, as name=value with commas between.", secret=True),
    Setting("PYLON_OTEL_SAMPLE", "otel_sample", _float(0, 1), "1",
            "Share of the requests without a traceparent that begin a trace."),
    Setting("PYLON_SLOW_QUERY_S", "slow_query_s", _float(0, 3600), "0.25",
            "A read of rows that takes longer is counted as slow, and logged without its values "
            "(query.slow)."),
)
# Names the file that `pylonctl` reads settings from. No setting: it is read before all of them.
ENV_FILE_NAME: Final = "PYLON_ENV_FILE"
INTERNAL_NAMES: Final = frozenset({
    "PYLON_WORKER", "PYLON_LISTEN_FD", "PYLON_SUPERVISOR_PID", "PYLON_GENERATION",
    "PYLON_KEPT_LISTENERS",
})
