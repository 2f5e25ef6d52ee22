"""Senders of mails, against real servers: which mails arrive, and which errors are final."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pylon.config import load
from pylon.errors import EmailRefused, EmailSendFailed, SettingsRefused
from pylon.mail import senders, services, smtp
from pylon.mail.message import Mail
from pylon.setting_checks import unsafe_settings
from tests.support.smtp_server import smtp_server

FROM = "My App <noreply@example.com>"
MAIL = Mail("id1", "MAGIC_CODE", "ann@example.com", "Hello", "Your code is 123456\n",
            1_700_000_000, "<b>123456</b>")


def send(url: str, mail: Mail = MAIL, context: ssl.SSLContext | None = None) -> None:
    smtp.send_by_smtp(
        mail, smtp.parse_smtp_url(url), FROM, context or ssl.create_default_context()
    )


@pytest.mark.usefixtures("processes")
def test_a_mail_arrives_with_its_parts(tmp_path: Path) -> None:
    with smtp_server(tmp_path, "accept", "--user", "ann", "--password", "p@ss:word") as server:
        send(f"smtp://ann:p%40ss%3Aword@127.0.0.1:{server.port}")
        (mail,) = server.mails()
        assert (mail["from"], mail["to"]) == ("noreply@example.com", ["ann@example.com"])
        assert mail["text"] == MAIL.text and mail["html"].strip() == MAIL.html
        assert mail["headers"]["auto-submitted"] == "auto-generated"
        with pytest.raises(EmailSendFailed, match="refused the sign-in with 535") as caught:
            send(f"smtp://ann:wrong@127.0.0.1:{server.port}")
        assert "wrong" not in str(caught.value.body())


@pytest.mark.usefixtures("processes")
def test_an_address_with_letters_outside_ascii_is_carried(tmp_path: Path) -> None:
    with smtp_server(tmp_path) as server:
        send(server.url, Mail("id2", "X", "zo\u00eb@xn--bcher-kva.example", "s", "t", 1))
        (mail,) = server.mails()
        assert mail["to"] == ["zo\u00eb@xn--bcher-kva.example"]


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("mode", "error", "says"), [
    ("no-mailbox", EmailRefused, "refused the recipient with 550"),
    ("no-text", EmailRefused, "refused the text with 554"),
    ("later", EmailSendFailed, "refused the recipient with 451"),
])
def test_the_reply_tells_whether_a_later_attempt_can_succeed(
    tmp_path: Path, mode: str, error: type[Exception], says: str
) -> None:
    with smtp_server(tmp_path, mode) as server, pytest.raises(error, match=says) as caught:
        send(server.url)
    assert "ann@example.com" not in str(caught.value)  # the message reaches the log
    assert type(caught.value) is error


@pytest.mark.usefixtures("processes")
def test_a_server_that_says_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smtp, "MAIL_STEP_S", 0.3)
    with (
        smtp_server(tmp_path, "hang") as server,
        pytest.raises(EmailSendFailed, match="cannot be reached"),
    ):
        send(server.url)


def test_a_server_that_is_not_there_is_a_passing_failure() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EmailSendFailed, match="cannot be reached"):
        send(f"smtp://127.0.0.1:{port}")


def certificate(folder: Path, name: str) -> Path:
    """Make a certificate for a host name, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject)
        .public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "smtp.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ))
    return path


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("mode", ["starttls", "tls"])
def test_a_server_elsewhere_gets_the_mail_encrypted_only(tmp_path: Path, mode: str) -> None:
    host = socket.gethostname()
    pem = certificate(tmp_path, host)
    scheme = "smtps" if mode == "tls" else "smtp"
    trusting = ssl.create_default_context(cafile=str(pem))
    with smtp_server(tmp_path, mode, "--certificate", str(pem)) as server:
        url = f"{scheme}://{host}:{server.port}"
        with pytest.raises(EmailSendFailed, match="certificate"):
            send(url)
        send(url, context=trusting)
        (mail,) = server.mails()
        assert mail["is_tls"] or mode == "tls"


@pytest.mark.usefixtures("processes")
def test_nothing_is_sent_where_starttls_was_removed(tmp_path: Path) -> None:
    with smtp_server(tmp_path) as server:
        with pytest.raises(EmailSendFailed, match="does not offer STARTTLS"):
            send(f"smtp://user:secret@{socket.gethostname()}:{server.port}")
        assert server.mails() == []


class Service(ThreadingHTTPServer):
    """An HTTP service that records requests and answers with `status`."""

    status = 200
    location = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.requests: list[tuple[str, dict[str, str], Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/send"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.end_headers()
        self.wfile.write(b'{"message":"for ann@example.com"}')

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def service() -> Iterator[Service]:
    with Service() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("provider", ["webhook", "resend", "sendgrid"])
def test_a_service_gets_the_mail_in_its_form(provider: str) -> None:
    with service() as server:
        services.service_sender(provider, FROM, "the-key", server.url)(MAIL)
    ((_, headers, body),) = server.requests
    assert headers["Authorization"] == "Bearer the-key"
    assert headers["Idempotency-Key"] == "id1"
    if provider == "webhook":
        assert body == {
            "to": "ann@example.com", "from": FROM, "subject": "Hello", "body": MAIL.text,
            "text": MAIL.text, "html": MAIL.html,
        }
    elif provider == "resend":
        assert body["to"] == ["ann@example.com"] and body["from"] == FROM
        assert (body["text"], body["html"]) == (MAIL.text, MAIL.html)
    else:
        assert body["personalizations"] == [{"to": [{"email": "ann@example.com"}]}]
        assert body["from"] == {"email": "noreply@example.com", "name": "My App"}
        assert [part["value"] for part in body["content"]] == [MAIL.text, MAIL.html]


@pytest.mark.parametrize(("status", "error"), [
    (400, EmailRefused), (422, EmailRefused), (401, EmailSendFailed), (429, EmailSendFailed),
    (500, EmailSendFailed), (302, EmailSendFailed),
])
def test_the_status_of_a_service_tells_whether_to_try_again(
    status: int, error: type[Exception]
) -> None:
    with service() as server:
        server.status, server.location = status, server.url
        with pytest.raises(error) as caught:
            services.service_sender("webhook", FROM, None, server.url)(MAIL)
    assert type(caught.value) is error
    assert "ann@example.com" not in str(caught.value)
    assert len(server.requests) == 1  # no redirect was followed


def test_the_file_sender_writes_private_files(tmp_path: Path) -> None:
    folder = tmp_path / "mails"
    config = load({"PYLON_EMAIL_PROVIDER": "file", "PYLON_EMAIL_FOLDER": str(folder)}).config
    sender = senders.make_sender(config)
    assert sender is not None
    sender(MAIL)
    (path,) = folder.iterdir()
    assert path.name == "id1.eml" and b"123456" in path.read_bytes()
    assert path.stat().st_mode & 0o077 == folder.stat().st_mode & 0o077 == 0
    (tmp_path / "taken").write_text("")
    config = load({"PYLON_EMAIL_PROVIDER": "file", "PYLON_EMAIL_FOLDER": str(tmp_path / "taken")})
    other = senders.make_sender(config.config)
    assert other is not None
    with pytest.raises(EmailSendFailed, match="cannot be written"):
        other(MAIL)


def test_console_prints_in_dev_mode_only(capsys: pytest.CaptureFixture[str]) -> None:
    dev = load({"PYLON_DEV_MODE": "true", "PYLON_ADMIN_TOKEN": "x" * 32}).config
    sender = senders.make_sender(dev)
    assert sender is not None
    sender(MAIL)
    assert "Your code is 123456" in capsys.readouterr().err
    found = load({"PYLON_EMAIL_PROVIDER": "console"})
    assert senders.make_sender(found.config) is None
    assert any("sends nothing" in text for text in found.warnings)
    assert senders.make_sender(load({}).config) is None


@pytest.mark.parametrize(("environ", "missing"), [
    ({"PYLON_EMAIL_PROVIDER": "smtp", "PYLON_EMAIL_FROM": "a@b.com"}, "PYLON_EMAIL_SMTP_URL"),
    ({"PYLON_EMAIL_PROVIDER": "smtp", "PYLON_EMAIL_SMTP_URL": "smtp://h"}, "PYLON_EMAIL_FROM"),
    ({"PYLON_EMAIL_PROVIDER": "resend", "PYLON_EMAIL_FROM": "a@b.com"}, "PYLON_EMAIL_API_KEY"),
    ({"PYLON_EMAIL_PROVIDER": "webhook", "PYLON_EMAIL_FROM": "a@b.com"}, "PYLON_EMAIL_ENDPOINT"),
    ({"PYLON_EMAIL_PROVIDER": "file", "PYLON_EMAIL_FROM": "a@b.com"}, "PYLON_EMAIL_FOLDER"),
])
def test_a_start_refuses_a_sender_that_lacks_a_setting(
    environ: dict[str, str], missing: str
) -> None:
    config = load({"PYLON_CORS_ORIGIN": "https://app.example.com", **environ}).config
    assert any(missing in problem for problem in unsafe_settings(config))


@pytest.mark.parametrize(("name", "value"), [
    ("PYLON_EMAIL_SMTP_URL", "http://host"), ("PYLON_EMAIL_SMTP_URL", "smtp://host/path"),
    ("PYLON_EMAIL_SMTP_URL", "smtp://user@host"), ("PYLON_EMAIL_FROM", "nobody"),
    ("PYLON_EMAIL_FROM", "a@b.com\nBcc: c@d.com"), ("PYLON_EMAIL_FROM", "a@b.com, c@d.com"),
    ("PYLON_EMAIL_PROVIDER", "pigeon"), ("PYLON_DASHBOARD_URL", "//evil.example"),
    ("PYLON_DASHBOARD_URL", "javascript:alert(1)"),
])
def test_bad_values_of_settings_are_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsRefused, match=name) as caught:
        load({name: value})
    assert "smtp://user" not in str(caught.value)
