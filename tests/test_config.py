"""The settings table: origins, bad values, refusals, warnings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pylon import config, settings
from pylon.database_url import shown_url
from pylon.errors import SettingsRefused, StartRefused
from pylon.roles import CHOSEN_ROLES
from pylon.setting_checks import unsafe_settings

GOOD = {"PYLON_CORS_ORIGIN": "https://app.example.com", "PYLON_ADMIN_TOKEN": "x" * 40}
DATABASE = {"DATABASE_URL": "postgres://db/app", "PYLON_SECRET_KEY": bytes(range(32)).hex()}


def test_the_table_and_the_config_have_the_same_fields() -> None:
    fields = [field.name for field in dataclasses.fields(config.Config)]
    families = ["sign_in_providers", "email_templates", "bucket_access"]
    assert [*(setting.field for setting in settings.SETTINGS), *families] == fields


def test_every_default_can_be_read() -> None:
    loaded = config.load({})
    assert loaded.config.port == 4321
    assert set(loaded.origin.values()) == {"default"}
    dev = config.load({"PYLON_DEV_MODE": "1"})
    assert dev.config.cors_origin == ("*",)
    assert dev.origin["PYLON_CORS_ORIGIN"] == "dev default"


def test_the_environment_wins_over_the_file() -> None:
    loaded = config.load(
        {"PYLON_PORT": "5000"}, {"PYLON_PORT": "6000", "PYLON_BIND": "::1"}, "app/.env"
    )
    assert (loaded.config.port, loaded.origin["PYLON_PORT"]) == (5000, "environment")
    assert (loaded.config.bind, loaded.origin["PYLON_BIND"]) == ("::1", "app/.env")


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"PYLON_PORT": "http"}, ("PYLON_PORT", "'http'", "1 to 65535")),
        ({"PYLON_PORT": "70000"}, ("PYLON_PORT", "'70000'")),
        ({"PYLON_PORT": "4_321"}, ("PYLON_PORT", "'4_321'")),
        ({"PYLON_PORT": "٤٣٢١"}, ("PYLON_PORT", "1 to 65535")),
        ({"PYLON_PORT": "9" * 5_000}, ("PYLON_PORT", "1 to 65535")),
        ({"PYLON_DRAIN_SECS": "1_0.5"}, ("PYLON_DRAIN_SECS", "0 to 3600")),
        ({"PYLON_DEV_MODE": "yes"}, ("PYLON_DEV_MODE", "'yes'", "true")),
        ({"PYLON_DURABILITY": "maximal"}, ("PYLON_DURABILITY", "normal, full")),
        ({"PYLON_DRAIN_SECS": "nan"}, ("PYLON_DRAIN_SECS", "'nan'")),
        ({"PYLON_NODE": "a b"}, ("PYLON_NODE", "'a b'", "1 to 63")),
        ({"PYLON_REGION": "eu west"}, ("PYLON_REGION", "'eu west'", "1 to 63")),
        ({"PYLON_CLUSTER_URL": "http://a:1"}, ("PYLON_CLUSTER_URL", "tcp://host:port")),
        ({"PYLON_CLUSTER_URL": "tcp://a"}, ("PYLON_CLUSTER_URL", "tcp://host:port")),
        ({"PYLON_CLUSTER_URL": "tcp://a:1/x"}, ("PYLON_CLUSTER_URL", "and no more")),
        ({"PYLON_CLUSTER_URL": "tcp://a:0"}, ("PYLON_CLUSTER_URL", "1 to 65535")),
        ({"PYLON_CLUSTER_URL": "tcp://0.0.0.0:44"}, ("PYLON_CLUSTER_URL", "of this machine")),
    ],
)
def test_a_bad_value_names_setting_value_and_remedy(
    env: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(StartRefused) as refused:
        config.load(env)
    for word in words:
        assert word in refused.value.message


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({}, "PYLON_CORS_ORIGIN must be set in production (non-dev mode)"),
        ({"PYLON_CORS_ORIGIN": "*"}, 'PYLON_CORS_ORIGIN="*" is refused in production mode'),
        ({"PYLON_DEV_MODE": "true"}, "PYLON_ADMIN_TOKEN is not set"),
        ({**GOOD, "PYLON_CORS_ORIGIN": "https://x\r\nSet-Cookie: a"}, "header"),
    ],
)
def test_what_is_unsafe_is_refused(env: dict[str, str], word: str) -> None:
    with pytest.raises(StartRefused) as refused:
        config.refuse_unsafe(config.load(env).config)
    assert word in refused.value.message
    assert "\n" not in refused.value.message


def test_safe_settings_are_not_refused() -> None:
    assert config.load(GOOD).warnings == ()
    config.refuse_unsafe(config.load(GOOD).config)
    config.refuse_unsafe(config.load({"PYLON_DEV_MODE": "1", "PYLON_ADMIN_TOKEN": "a"}).config)


def test_a_weak_or_missing_admin_token_is_a_warning() -> None:
    assert "nobody can be admin" in config.load({}).warnings[0]
    assert "32" in config.load({"PYLON_ADMIN_TOKEN": "short"}).warnings[0]
    assert config.load({"PYLON_DEV_MODE": "1", "PYLON_ADMIN_TOKEN": "short"}).warnings == ()


def test_an_unknown_name_is_pointed_out() -> None:
    warnings = config.load({**GOOD, "PYLON_PROT": "1"}).warnings
    assert len(warnings) == 1
    assert "PYLON_PORT" in warnings[0]


@pytest.mark.parametrize("given", [
    "https://a.example/", "https://A.example", "HTTPS://a.example", "https://a.example:443",
    " https://a.example ", "https://a.example:",
])
def test_an_origin_is_spelled_as_browsers_spell_it(given: str) -> None:
    loaded = config.load({**GOOD, "PYLON_CORS_ORIGIN": given, "PYLON_CSRF_ORIGINS": given + ","})
    assert loaded.config.cors_origin == ("https://a.example",)
    assert loaded.config.csrf_origins == ("https://a.example",)


def test_several_origins_are_a_comma_list() -> None:
    loaded = config.load({**GOOD, "PYLON_CORS_ORIGIN": "https://a.example, https://B.example/"})
    assert loaded.config.cors_origin == ("https://a.example", "https://b.example")
    config.refuse_unsafe(loaded.config)


@pytest.mark.parametrize("origin", [
    "http://localhost:3000", "http://[::1]:3000", "capacitor://localhost", "https://a_b.example",
    "chrome-extension://abcdefghijklmnop", "https://xn--bcher-kva.example", "http://10.0.0.1",
])
def test_origins_of_honest_pages_are_taken_as_they_are(origin: str) -> None:
    loaded = config.load({**GOOD, "PYLON_CORS_ORIGIN": origin})
    config.refuse_unsafe(loaded.config)
    assert loaded.config.cors_origin == (origin,)


@pytest.mark.parametrize(("given", "words"), [
    ("https://a.example https://b.example", "without spaces"),
    ("a.example", "for example https://a.example"),
    ("a.example:3000", "for example https://a.example:3000"),
    ("https://*.example", "name one host"),
    ("https://a.example/app", "write https://a.example"),
    ("https://a.example:443/app?x", "write https://a.example"),
    ("https://me@a.example", "write https://a.example"),
    ("https://a.example:0", "its port"), ("https://a.example:99999", "its port"),
    ("https://bücher.example", "xn--bcher-kva.example"),
    ("https://", "the host is missing"), ("file:///app", "the host is missing"),
    ("https://[::1", "no host"), ("https://[1.2]", " no "), ("javascript:x", "scheme"),
])
def test_an_origin_that_no_browser_sends_is_refused_with_the_right_spelling(
    given: str, words: str
) -> None:
    with pytest.raises(StartRefused) as refused:
        config.load({**GOOD, "PYLON_CORS_ORIGIN": given})
    assert "PYLON_CORS_ORIGIN" in refused.value.message and words in refused.value.message


@pytest.mark.parametrize(("env", "field", "value"), [
    ({"PYLON_COOKIE_SECURE": ""}, "cookie_secure", True),
    ({"PYLON_DEV_MODE": "1", "PYLON_BIND": ""}, "bind", "127.0.0.1"),
    ({"PYLON_DEV_MODE": ""}, "dev_mode", False),
    ({"PYLON_PORT": ""}, "port", 4321),
    ({"PYLON_ADMIN_TOKEN": ""}, "admin_token", None),
    ({"PYLON_DURABILITY": ""}, "durability", "normal"),
])
def test_an_empty_value_means_the_default(
    env: dict[str, str], field: str, value: object
) -> None:
    assert getattr(config.load(env).config, field) == value


def test_every_setting_may_be_empty() -> None:
    empty = {s.env: "" for s in settings.SETTINGS}
    assert config.load(empty).config == config.load({}).config
    dev = {"PYLON_DEV_MODE": "1"}
    assert config.load(empty | dev).config == config.load(dev).config


def test_an_empty_variable_takes_back_a_line_of_the_file() -> None:
    loaded = config.load({"PYLON_SEED": ""}, {"PYLON_SEED": "rows.json"})
    assert (loaded.config.seed, loaded.origin["PYLON_SEED"]) == (None, "default")


@pytest.mark.parametrize(("name", "value"), [
    ("PYLON_COOKIE_NAME", "a;b"), ("PYLON_COOKIE_NAME", "a b"), ("PYLON_COOKIE_NAME", "ü"),
    ("PYLON_COOKIE_NAME", "a=b"), ("PYLON_COOKIE_NAME", "sid # the cookie"),
    ("PYLON_COOKIE_NAME", "a\r\nX: y"), ("PYLON_COOKIE_DOMAIN", "https://a.example"),
    ("PYLON_COOKIE_DOMAIN", "a.example\r\nX: y"), ("PYLON_COOKIE_DOMAIN", "a.example:80"),
    ("PYLON_COOKIE_DOMAIN", "a.example/"), ("PYLON_COOKIE_DOMAIN", "a.example; Secure"),
    ("PYLON_WS_URL", "a b"), ("PYLON_WS_URL", "api.example.com"), ("PYLON_WS_URL", "https://a/"),
    ("PYLON_WS_URL", "wss://a/ws#x"), ("PYLON_PUBLIC_URL", "ftp://a"), ("PYLON_SSE_URL", "/sse"),
    ("PYLON_SHARD_URL", "wss://a b/"), ("PYLON_PUBLIC_URL", "https://a\n"),
    ("PYLON_BIND", "localhost:80"), ("PYLON_BIND", "*"), ("PYLON_BIND", "http://localhost"),
    ("PYLON_BIND", "a" * 64 + "ü"), ("PYLON_ADMIN_TOKEN", "abc # the token"),
    ("PYLON_ADMIN_TOKEN", "x" * 40 + "\n"), ("PYLON_METRICS_TOKEN", "schlüssel"),
    ("PYLON_DB_PATH", "/data/app.db # the database"), ("PYLON_DB_PATH", ":memory:"),
    ("PYLON_DB_PATH", "file:app.db?mode=ro"), ("PYLON_DB_PATH", "postgres://u@h/d"),
    ("PYLON_MANIFEST", "a\nb"), ("PYLON_AUTH_RATE_LIMITS", "sends=3"),
    ("PYLON_AUTH_RATE_LIMITS", "send_ip=0"), ("PYLON_AUTH_RATE_LIMITS", "send_ip=3,send_ip=4"),
    ("PYLON_AUTH_RATE_LIMITS", "send_ip"), ("PYLON_AUTH_RATE_LIMITS", "login_ip=9"),
])
def test_a_malformed_value_is_refused_in_one_line(name: str, value: str) -> None:
    with pytest.raises(StartRefused) as refused:
        config.load({**GOOD, name: value})
    assert refused.value.message.startswith(f"{name} is ")
    assert "\n" not in refused.value.message
    assert "TOKEN" not in name or value.strip() not in refused.value.message


def test_a_phrase_is_a_token() -> None:
    phrase = "an admin token of more than 32 characters"
    assert config.load({**GOOD, "PYLON_ADMIN_TOKEN": phrase}).config.admin_token == phrase


@pytest.mark.parametrize(("name", "value", "words"), [
    ("PYLON_COOKIE_NAME", "__Host-sid", "no PYLON_COOKIE_DOMAIN"),
    ("PYLON_COOKIE_NAME", "__Secure-sid", "PYLON_COOKIE_SECURE=true"),
    ("PYLON_PORT", "65534", "the sse port would be 65536"),
])
def test_settings_that_cannot_go_together_are_refused(name: str, value: str, words: str) -> None:
    env = {**GOOD, "PYLON_COOKIE_DOMAIN": ".A.example", "PYLON_COOKIE_SECURE": "0", name: value}
    loaded = config.load(env)
    assert loaded.config.cookie_domain == "a.example"
    with pytest.raises(StartRefused) as refused:
        config.refuse_unsafe(loaded.config)
    messages = list(unsafe_settings(loaded.config))
    assert refused.value.message == messages[0]
    assert any(words in message for message in messages)


def test_every_bad_value_is_told_of() -> None:
    with pytest.raises(SettingsRefused) as refused:
        config.load({**GOOD, "PYLON_PORT": "x", "PYLON_BIND": "*"})
    assert [p.partition(" ")[0] for p in refused.value.problems] == ["PYLON_BIND", "PYLON_PORT"]
    assert "1 more" in refused.value.message and "\n" not in refused.value.message


def foreign(name: str, value: str, **more: str) -> tuple[int, int]:
    """How many refusals, and warnings, a variable of the published server gets."""
    loaded = config.load({**GOOD, **more, name: value})
    secret = value in str((loaded.refusals, loaded.warnings))
    assert not (secret and "://" in value), "its password is shown"
    return len(loaded.refusals), len(loaded.warnings)


@pytest.mark.parametrize("name", [
    "PYLON_SESSION_DB", "PYLON_WS_MAX_FRAME",
])
def test_a_variable_whose_intent_would_not_hold_is_refused(name: str) -> None:
    loaded = config.load({**GOOD, name: "postgres://ada:pw@db/app"})
    (line,) = loaded.refusals
    assert line.startswith(f"{name} (from environment) has no effect: ") and "pw" not in line
    assert foreign(name, "") == (0, 0)


def test_where_the_intent_holds_or_the_feature_is_missing_it_is_a_warning_at_most() -> None:
    assert foreign("PYLON_SESSION_IN_MEMORY", "true") == (1, 0)
    assert foreign("PYLON_SESSION_IN_MEMORY", "false") == (0, 0)
    assert foreign("PYLON_FILES_PROVIDER", "stack0") == (0, 1)
    assert foreign("PYLON_CAPTCHA_SECRET", "x") == (0, 1)
    assert foreign("RUST_LOG", "info") == (0, 1)
    dev = {"PYLON_DEV_MODE": "1"}
    assert foreign("PYLON_WS_MAX_FRAME", "100000", **dev) == (0, 1)
    assert foreign("DATABASE_URL", "file:./prisma.db") == (1, 0)
    assert foreign("DATABASE_URL", "file:./prisma.db", **dev) == (0, 1)
    assert foreign("DATABASE_URL", "POSTGRESQL://u:p@h/d") == (0, 0)


def test_a_postgres_url_chooses_the_store_and_any_other_does_not() -> None:
    url = " postgres://ada:pw@db:5432,db2/app?sslmode=require"
    assert config.load({"DATABASE_URL": url}).config.database_url == url.strip()
    assert config.load({"DATABASE_URL": "mysql://u:p@h/d"}).config.database_url is None
    assert config.load({"DATABASE_URL": "postgres://ada@/app?host=/run/pg"}).config.database_url


@pytest.mark.parametrize("url", [
    "postgres://ada:p@ss@db/app", "postgres://ada:p/ss@db/app", "postgres://ada:p#ss@db/app",
    "postgres://ada:pass word@db/app", "postgres://ada:pass@db:70000/app", "postgres://ada:p/pass",
    "postgres://ada@db:pass/app",
])
def test_a_url_that_libpq_would_misread_is_refused_without_its_password(url: str) -> None:
    for name in ("DATABASE_URL", "PYLON_DATABASE_DIRECT_URL"):
        with pytest.raises(SettingsRefused) as refused:
            config.load({name: url})
        assert refused.value.message.startswith(f"{name} is (hidden): ")
        assert "ss" not in refused.value.message.replace("percent", "").replace("password", "")


@pytest.mark.parametrize(("url", "shown"), [
    ("postgres://ada:pw@db:5432/app?sslmode=require", "postgres://ada@db:5432/app"),
    ("postgresql://db/app?user=ada&password=pw", "postgresql://db/app"),
    ("postgresql://ada@/app?password=pw&host=%2Frun%2Fpg", "postgresql://ada@/app (host /run/pg)"),
    ("postgresql://a:pw@h1:1,h2:2/app", "postgresql://a@h1:1,h2:2/app"),
    ("postgres://ada:p@pw@db/app", "postgres://ada@db/app"),
    ("postgres://ada:p?x=pw@db/app", "postgres://ada@db/app"),
])
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert shown_url(url) == shown


def test_settings_of_a_database_and_of_nodes_need_one() -> None:
    good = {**GOOD, **DATABASE}
    assert not list(unsafe_settings(config.load({**good, "PYLON_ROLES": "ws"}).config))
    for env in (
        {"PYLON_ROLES": "ws,sse"}, {"PYLON_DATABASE_DIRECT_URL": "postgres://db/app"},
        {"PYLON_CLUSTER_URL": "tcp://game-1:4400"},
    ):
        (line,) = unsafe_settings(config.load({**GOOD, **env}).config)
        assert line.startswith(next(iter(env)))
    (line,) = unsafe_settings(config.load({**good, "PYLON_IN_MEMORY": "1"}).config)
    assert line.startswith("PYLON_IN_MEMORY")


@pytest.mark.parametrize(("env", "words"), [
    ({"PYLON_CLUSTER_URL": "tcp://game-1:4324"}, "the port of shards too"),
    ({"PYLON_CLUSTER_URL": "tcp://game-1:4320", "PYLON_SHARD_WORKERS": "2"}, "the port of http"),
    ({"PYLON_CLUSTER_URL": "tcp://[fd00::1]:65535", "PYLON_SHARD_WORKERS": "2"}, "a lower port"),
])
def test_cluster_ports_are_nobody_elses(env: dict[str, str], words: str) -> None:
    good = {**GOOD, **DATABASE}
    (line,) = unsafe_settings(config.load({**good, **env}).config)
    assert line.startswith("PYLON_CLUSTER_URL is tcp://") and words in line
    fine = config.load({**good, **env, "PYLON_ROLES": "http"}).config
    assert fine.cluster_url == env["PYLON_CLUSTER_URL"]
    assert not list(unsafe_settings(config.load({
        **good, "PYLON_CLUSTER_URL": "tcp://game-1:4400", "PYLON_SHARD_WORKERS": "8",
    }).config))


def test_roles_are_a_list_in_the_order_of_the_table() -> None:
    loaded = config.load({"PYLON_ROLES": " ws, http"}).config
    assert loaded.roles == ("http", "ws")
    assert [loaded.workers_of(name) for name in CHOSEN_ROLES] == [2, 1, 0, 0]
    assert config.load({"PYLON_ROLES": ""}).config.roles == CHOSEN_ROLES
    for text in ("jobs", ",", "http;ws"):
        with pytest.raises(SettingsRefused, match="PYLON_ROLES"):
            config.load({"PYLON_ROLES": text})


@pytest.mark.parametrize(("text", "value"), [
    ("\ufeffPYLON_X=1", "1"), ("PYLON_X=sid # the cookie", "sid"), ("PYLON_X=a#b", "a#b"),
    ("PYLON_X='sid' # c", "sid"), ('PYLON_X="sid" # c', "sid"), ("PYLON_X= # nothing", ""),
    ("PYLON_X=", ""), ("PYLON_X='a # b'", "a # b"), ('PYLON_X="a # b"#c', "a # b"),
    ('PYLON_X="say \\"hi\\""', 'say "hi"'), ("PYLON_X='c:\\new'", "c:\\new"),
    ("export PYLON_X = 7\r\nB=1", "7"), ("PYLON_X=it's", "it's"), ("PYLON_X=a=b", "a=b"),
    ("KEY='two\nlines'\nPYLON_X=1", "1"), ("NAME='Tis\nPYLON_X=1", "1"),
    ("# PYLON_X=0\n\nPYLON_X=1\nPYLON_X=2", "2"), ("PYLON_X=/data/app.db\t# db", "/data/app.db"),
    ("NEXT_PUBLIC_PYLON_X=2\nPYLON_X=1", "1"), ("KEY='PYLON_Y=1\n # PYLON_X=2'\nPYLON_X=1", "1"),
    ("PYLON_X='${HOME}'", "${HOME}"), ("A=${HOME}\nPYLON_X=1", "1"),
    ('PYLON_X="a\\nb\\t\\\\c"', "a\nb\t\\c"), ("PYLON_X='#1'", "#1"), ("A=1\rPYLON_X=2\r", "2"),
    ("A=\"x\" y\nB='\n?\nPYLON_X=1", "1"), ("PYLON_X='it\\'s'", "it's"),
])
def test_env_files_are_read_as_the_well_known_readers_do(text: str, value: str) -> None:
    assert config.parse_dotenv(text)["PYLON_X"] == value


@pytest.mark.parametrize(("text", "words"), [
    ("A=1\nPYLON_X='open", "line 2: PYLON_X: the value's opening '"),
    ('PYLON_X="a" b', "text after"), ("PYLON_X=${HOME}/db", "not replaced"),
    ("A=1\nPYLON_X: 1", "line 2: PYLON_X: expected NAME=value"), ("PYLON_X 1", "expected NAME"),
    ("SET PYLON_X=1", "expected NAME=value"), ("\u00a0PYLON_X=1", "expected NAME=value"),
    ("\0PYLON_X=1", "other characters before"), ("A=1\n\u200bPYLON_X=1", "line 2: PYLON_X: there"),
    ('A="open\nPYLON_X=1\nB="\n', "line 2: PYLON_X: it is within the quotes of A"),
    ('A="open\nPYLON_X=1\nB="x"\n', "line 2: PYLON_X: it is within the quotes of A"),
    ("\n\n  PYLON_X=\"open\n", 'line 3: PYLON_X: the value\'s opening " has no'),
    ('PYLON_X="a\nb" c', "line 1: PYLON_X: text after"), ('PYLON_X="${HOME}"', "not replaced"),
    ('A=1\r\nPYLON_X="\\$HOME"', "line 2: PYLON_X: ${...} is not replaced, and \\$ has no"),
    ("PYLON_X=#1", "the value begins with #"), ("'PYLON_X'=1", "expected NAME=value"),
    ("PYLON_X\u00a0=1", "expected NAME=value"), ("PYLON_X:", "expected NAME=value"),
    ("A='x\n\nPYLON_X=1\n'", "line 3: PYLON_X: it is within the quotes of A"),
])
def test_env_lines_that_can_be_read_in_two_ways_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        config.parse_dotenv(text)


def test_ports_follow_the_http_port() -> None:
    loaded = config.load({"PYLON_PORT": "9000", "PYLON_SSE_PORT": "7000"}).config
    assert [loaded.port_of(r) for r in ("http", "ws", "sse", "shards")] == [9000, 9001, 7000, 9003]


def test_dotenv_lines() -> None:
    text = "# no\nA=1\nexport B='two words'\nC=\"x=y\"\nnothing\nPYLON_X\n D = 4 \n"
    assert config.parse_dotenv(text) == {"A": "1", "B": "two words", "C": "x=y", "D": "4"}


def test_no_other_module_reads_settings_from_the_environment() -> None:
    """The rule of config.py's docstring: settings are read in one place."""
    root = Path(__file__).parent.parent
    names = "|".join(s.env for s in settings.SETTINGS)
    reads = re.compile(rf"""environ(?:\.get\(|\[)\s*["'](?:{names})["']""")
    found = [
        str(path.relative_to(root))
        for package in ("pylon", "workers", "supervisor")
        for path in (root / package).rglob("*.py")
        # child.py: what the supervisor hands to its children, the runtime folder among it.
        if path.name not in ("config.py", "child.py") and reads.search(path.read_text())
    ]
    assert found == []
