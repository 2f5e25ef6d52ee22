"""B7: origins that stand for everybody's pages are refused at start, in settings and manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pylon import config
from pylon.auth.origin import Origins, origins
from pylon.errors import StartRefused
from pylon.manifest_loader import parse_manifest
from pylon.startup import load_checked

MANIFEST: dict[str, Any] = {
    "manifest_version": 1, "name": "a", "version": "1", "routes": [],
    "entities": [{"name": "A", "fields": [], "indexes": []}],
}


def start(folder: Path, manifest: dict[str, Any] | None = None, **env: str) -> Origins:
    """Begin a start in production; the origins that it would allow."""
    path = folder / "pylon.manifest.json"
    path.write_text(json.dumps(MANIFEST | (manifest or {})))
    loaded = config.load({
        "PYLON_CORS_ORIGIN": "https://app.example.com", "PYLON_MANIFEST": str(path), **env,
    })
    return origins(loaded.config, load_checked(loaded))


def test_settings_of_an_honest_operator_start(tmp_path: Path) -> None:
    by_setting = start(tmp_path, PYLON_CSRF_ORIGINS="https://b.example, https://C.example/")
    by_manifest = start(tmp_path, {"auth": {"trusted_origins": ["https://b.example"]}})
    app, b, c = "https://app.example.com", "https://b.example", "https://c.example"
    assert by_setting == Origins(frozenset({app, b, c}), main=app)
    assert by_manifest == Origins(frozenset({app, b}), main=app)


@pytest.mark.parametrize(("name", "value"), [
    ("PYLON_CSRF_ORIGINS", "*"), ("PYLON_CSRF_ORIGINS", "https://b.example,*"),
    ("PYLON_CSRF_ORIGINS", "null"), ("PYLON_CORS_ORIGIN", "null"), ("PYLON_CORS_ORIGIN", "*"),
])
def test_an_origin_of_anybody_is_refused(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(StartRefused) as refused:
        start(tmp_path, **{name: value})
    assert name in refused.value.message and "refused in production" in refused.value.message
    dev = {"PYLON_DEV_MODE": "1", "PYLON_ADMIN_TOKEN": "t"}
    start(tmp_path, **dev, **{name: value})


@pytest.mark.parametrize("value", ["*", "null"])
def test_the_manifest_cannot_trust_any_origin_either(tmp_path: Path, value: str) -> None:
    with pytest.raises(StartRefused, match=r"auth\.trusted_origins"):
        start(tmp_path, {"auth": {"trusted_origins": ["https://b.example", value]}})


def test_named_origins_are_compared_as_browsers_spell_them() -> None:
    manifest = parse_manifest(json.dumps(
        MANIFEST | {"auth": {"trusted_origins": ["https://D.example:443/", "no origin"]}}
    ), "m.json")
    loaded = config.load({
        "PYLON_CORS_ORIGIN": "https://A.example/", "PYLON_CSRF_ORIGINS": "http://b.example:80",
    })
    gate = origins(loaded.config, manifest)
    for origin in ("https://a.example", "http://b.example", "https://d.example"):
        assert gate.allows(origin)
    for origin in ("https://b.example", "null", "https://evil.example", None):
        assert not gate.allows(origin)
