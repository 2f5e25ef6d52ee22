"""The settings table: origins, bad values, refusals, warnings."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from pylon import config
from pylon.errors import StartRefused

GOOD = {"PYLON_CORS_ORIGIN": "https://app.example.com", "PYLON_ADMIN_TOKEN": "x" * 40}


def test_the_table_and_the_config_have_the_same_fields() -> None:
    assert [s.field for s in config.SETTINGS] == [f.name for f in dataclasses.fields(config.Config)]


def test_every_default_can_be_read() -> None:
    loaded = config.load({})
    assert loaded.config.port == 4321
    assert set(loaded.origin.values()) == {"default"}
    dev = config.load({"PYLON_DEV_MODE": "1"})
    assert dev.config.cors_origin == "*"
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
        ({"PYLON_DEV_MODE": "yes"}, ("PYLON_DEV_MODE", "'yes'", "true")),
        ({"PYLON_DURABILITY": "maximal"}, ("PYLON_DURABILITY", "normal, full")),
        ({"PYLON_DRAIN_SECS": "nan"}, ("PYLON_DRAIN_SECS", "'nan'")),
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


def test_ports_follow_the_http_port() -> None:
    loaded = config.load({"PYLON_PORT": "9000", "PYLON_SSE_PORT": "7000"}).config
    assert [loaded.port_of(r) for r in ("http", "ws", "sse", "shards")] == [9000, 9001, 7000, 9003]


def test_dotenv_lines() -> None:
    text = "# no\nA=1\nexport B='two words'\nC=\"x=y\"\nnothing\n D = 4 \n"
    assert config.parse_dotenv(text) == {"A": "1", "B": "two words", "C": "x=y", "D": "4"}


def test_no_other_module_reads_settings_from_the_environment() -> None:
    """The rule of config.py's docstring: settings are read in one place."""
    root = Path(__file__).parent.parent
    names = "|".join(s.env for s in config.SETTINGS)
    reads = re.compile(rf"""environ(?:\.get\(|\[)\s*["'](?:{names})["']""")
    found = [
        str(path.relative_to(root))
        for package in ("pylon", "workers", "supervisor")
        for path in (root / package).rglob("*.py")
        # child.py: what the supervisor hands to its children, the runtime folder among it.
        if path.name not in ("config.py", "child.py") and reads.search(path.read_text())
    ]
    assert found == []
