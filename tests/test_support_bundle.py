"""pylonctl support-bundle: everything that helps is in it, and no secret of any kind."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pylon.cli.settings import read_settings
from pylon.data_dir_lock import log_file_of
from pylon.doctor.redaction import REMOVED, Redaction
from pylon.settings import SETTINGS
from tests.support.server import PylonServer

KEY = sha256(b"a key").hexdigest()
OTHER_KEY = sha256(b"the key before").hexdigest()
# A value for each setting that is a secret.
SECRETS = {
    "PYLON_ADMIN_TOKEN": "s3cretAdmin-0123456789-0123456789-0123",
    "PYLON_ADMIN_TOKEN_PREVIOUS": "s3cretPrevious-0123456789-0123456789-0",
    "PYLON_METRICS_TOKEN": "s3cretMetrics-0123456789-0123456789-01",
    "PYLON_SECRET_KEY": KEY,
    "PYLON_SECRET_KEY_PREVIOUS": OTHER_KEY,
    "PYLON_EMAIL_SMTP_URL": "smtps://mailer:s3cretSmtp%2Fpw@mail.example:465",
    "PYLON_EMAIL_API_KEY": "s3cretMailKey-0123456789",
    "PYLON_JWT_SECRET": "s3cretJwt-0123456789-0123456789-0123456789",
    "PYLON_JWT_SECRET_PREVIOUS": "s3cretJwtBefore-0123456789-0123456789-01",
    "PYLON_CAPTCHA_SECRET": "s3cretCaptcha-0123456789",
    "PYLON_OTEL_HEADERS": "authorization=Bearer s3cretCollector-0123456789",
}
IN_URLS = {
    "DATABASE_URL": "postgres://app:s3cretDatabase@db.example/app",
    "PYLON_DATABASE_DIRECT_URL": "postgres://app:s3cretDirect@db.example/app",
    "PYLON_BACKUP_HOOK": "https://hooks.example/services/s3cretHook",
}
PROVIDER = {
    "PYLON_OAUTH_GITHUB_CLIENT_ID": "an-id",
    "PYLON_OAUTH_GITHUB_CLIENT_SECRET": "s3cretProvider-0123456789",
    "AWS_ACCESS_KEY_ID": "AKIAS3CRETBUCKET", "AWS_SECRET_ACCESS_KEY": "s3cretBucket-0123456789",
}
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzM2NyZXQifQ.s3cretSignature"
LOG_LINES = [
    f'{{"level":"info","event":"x","text":"Authorization: Bearer {JWT}"}}',
    '{"level":"info","event":"x","query":"?token=s3cretQuery&since=4711"}',
    '{"level":"info","event":"x","cookie":"notes_session=s3cretCookie; a=b"}',
    '{"level":"info","event":"x","text":"pylon_' + "5ec2e7" * 10 + 'abcd is a session"}',
    '{"level":"info","event":"x","text":"key pk.abcdefgh.s3cretApiKey0123456789"}',
    '{"level":"info","event":"x","url":"redis://user:s3cretInUrl@host/0"}',
    '{"level":"info","event":"x","password": "s3cretPassword", "seq": 4712}',
    "Set-Cookie: s=s3cretSetCookie; Path=/",
    "-----BEGIN PRIVATE KEY-----\\ns3cretPem\\n-----END PRIVATE KEY-----",
    "AGE-SECRET-KEY-1S3CRETAGE0123456789",
    "admin " + quote(SECRETS["PYLON_ADMIN_TOKEN"], safe=""),
    "basic " + base64.b64encode(SECRETS["PYLON_METRICS_TOKEN"].encode()).decode(),
    "key " + base64.b64encode(bytes.fromhex(KEY)).decode(),
    "bucket AKIAS3CRETBUCKET", "provider said " + PROVIDER["PYLON_OAUTH_GITHUB_CLIENT_SECRET"],
    '{"level":"warning","event":"kept.line","code":"DISK_FULL","status":503,"seq":4713}',
]
PLANTED = (
    "s3cret", "S3CRET", "5ec2e7", KEY, OTHER_KEY, JWT,
    base64.b64encode(SECRETS["PYLON_METRICS_TOKEN"].encode()).decode().rstrip("="),
    base64.b64encode(bytes.fromhex(KEY)).decode().rstrip("="),
)


def read_bundle(path: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        assert all(entry.isfile() and entry.mode == 0o600 for entry in tar)
        found = {}
        for entry in tar:
            file = tar.extractfile(entry)
            assert isinstance(file, io.BufferedReader)
            found[entry.name.partition("/")[2]] = file.read().decode()
        return found


def test_every_secret_setting_is_planted() -> None:
    assert {s.env for s in SETTINGS if s.secret} == {*SECRETS, *IN_URLS}


@pytest.mark.sqlite
def test_bundle_of_a_running_server_has_no_secret(make_server: Callable[..., PylonServer]) -> None:
    server = make_server(
        **SECRETS, **PROVIDER, PYLON_EMAIL_FROM="a@example.com", PYLON_EMAIL_PROVIDER="smtp",
        PYLON_PUBLIC_URL="https://api.example.com", PYLON_CAPTCHA_PROVIDER="turnstile",
        PYLON_CAPTCHA_SITE_KEY="public",
    ).start()
    log_file_of(server.db_path).write_text("\n".join(LOG_LINES) + "\n")
    path = server.folder / "bundle.tar.gz"
    done = server.ctl("support-bundle", str(path), "--json")
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    parts = read_bundle(path)
    assert set(parts) == set(json.loads(done.stdout)["parts"]) == {
        "about.json", "settings.txt", "doctor.json", "status.json", "metrics.txt",
        "manifest.json", "schema.json", "log.txt"}
    for name, text in parts.items():
        assert [word for word in PLANTED if word in text] == [], (name, text[:2_000])
    assert '"event":"kept.line","code":"DISK_FULL","status":503,"seq":4713' in parts["log.txt"]
    assert "since=4711" in parts["log.txt"] and '"seq": 4712' in parts["log.txt"]
    assert f"PYLON_PORT={server.port}" in parts["settings.txt"]
    assert json.loads(parts["status.json"])["ready"] is True
    assert "pylon_uptime_seconds" in parts["metrics.txt"] and "Tick" in parts["schema.json"]
    again = server.ctl("support-bundle", str(path))
    assert again.returncode != 0, "it overwrites nothing"


def test_bundle_without_a_server_says_what_is_missing(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server()
    done = server.ctl("support-bundle", "b.tar.gz")
    assert done.returncode == 0, done.stderr
    parts = read_bundle(server.folder / "b.tar.gz")
    assert parts["status.json"].startswith("not available: nothing runs on ")


def test_passwords_in_urls_are_removed_wherever_they_stand(tmp_path: Path) -> None:
    environ: dict[str, Any] = {
        **IN_URLS, **SECRETS, "PYLON_DB_PATH": str(tmp_path / "app.db"),
        "PYLON_EMAIL_FROM": "a@example.com", "PYLON_EMAIL_PROVIDER": "smtp"}
    redaction = Redaction(read_settings(environ=environ))
    hook = IN_URLS["PYLON_BACKUP_HOOK"]
    text = redaction.clean(f"login with s3cretDatabase, s3cretDirect, s3cretSmtp/pw, {hook}")
    assert text == f"login with {REMOVED}, {REMOVED}, {REMOVED}, {REMOVED}"


def test_what_helps_stays() -> None:
    redaction = Redaction(read_settings(environ={}))
    for text in ('"code":"TOKEN_EXPIRED"', '"token": null', "secret=[redacted]",
                 "http://127.0.0.1:4321/readyz", '"status_code": 503'):
        assert redaction.clean(text) == text
