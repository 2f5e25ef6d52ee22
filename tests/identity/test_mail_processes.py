"""Mails of real processes: SMTP that is down or slow, killed processes, codes that many use."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support import stores
from tests.support.manifests import sign_in_app
from tests.support.ports import reserve_base_port
from tests.support.server import PylonServer
from tests.support.smtp_server import SmtpStage, smtp_server
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores
SEND, VERIFY = "/api/auth/magic/send", "/api/auth/magic/verify"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mail")


@pytest.fixture(scope="module")
def server(
    processes: None, tested_store: stores.TestStore, folder: Path
) -> Iterator[PylonServer]:
    """A server with two HTTP workers, whose mail server listens on `smtp_port` when a test runs it.
    """
    made = PylonServer(folder / "server", sign_in_app(), {
        "PYLON_EMAIL_PROVIDER": "smtp", "PYLON_EMAIL_FROM": "Members <noreply@example.com>",
        "PYLON_EMAIL_SMTP_URL": f"smtp://127.0.0.1:{smtp_port(folder)}",
        "PYLON_AUTH_RATES": "false", "PYLON_HTTP_WORKERS": "2",
    })
    try:
        yield made.start()
    finally:
        made.close()


def smtp_port(folder: Path) -> int:
    """Return the port of the mail server, the same for a whole module."""
    file = folder / "smtp_port"
    if not file.exists():
        file.write_text(str(reserve_base_port()))
    return int(file.read_text())


def mails_to(smtp: SmtpStage, address: str) -> list[dict[str, Any]]:
    return [mail for mail in smtp.mails() if mail["to"] == [address]]


def received_code(smtp: SmtpStage, address: str) -> str:
    mail = wait_until(f"a mail to {address}", lambda: mails_to(smtp, address))[-1]
    found = re.search(r"\b(\d{6})\b", mail["text"])
    assert found is not None
    return found[1]


def token_of(mail: dict[str, Any]) -> str:
    found = re.search(r"token=([0-9a-f]{64})", mail["text"])
    assert found is not None
    return found[1]


def send(server: PylonServer, address: str) -> None:
    status, body, _ = server.request("POST", SEND, {"email": address})
    assert status == 200, body


def kill_identity(server: PylonServer) -> None:
    for pid in server.pids("identity"):
        os.kill(pid, signal.SIGKILL)


def test_a_code_arrives_and_signs_in(server: PylonServer, folder: Path, tmp_path: Path) -> None:
    with smtp_server(tmp_path, port=smtp_port(folder)) as smtp:
        send(server, "ann@example.com")
        code = received_code(smtp, "ann@example.com")
    status, body, _ = server.request("POST", VERIFY, {"email": "Ann@example.com", "code": code})
    assert status == 200 and body["token"]
    mail = mails_to(smtp, "ann@example.com")[0]
    assert mail["from"] == "noreply@example.com"
    assert mail["headers"]["auto-submitted"] == "auto-generated"


def test_of_fifty_uses_of_one_code_at_once_one_signs_in(
    server: PylonServer, folder: Path, tmp_path: Path
) -> None:
    with smtp_server(tmp_path, port=smtp_port(folder)) as smtp:
        send(server, "many@example.com")
        code = received_code(smtp, "many@example.com")
    body = {"email": "many@example.com", "code": code}
    with ThreadPoolExecutor(25) as pool:
        statuses = list(pool.map(
            lambda _: server.request("POST", VERIFY, body)[0], range(50)
        ))
    assert statuses.count(200) == 1
    assert set(statuses) <= {200, 401, 429}


def test_of_fifty_guesses_at_once_five_count(
    server: PylonServer, folder: Path, tmp_path: Path
) -> None:
    with smtp_server(tmp_path, port=smtp_port(folder)) as smtp:
        send(server, "guess@example.com")
        code = received_code(smtp, "guess@example.com")
    wrong = {"email": "guess@example.com", "code": f"{(int(code) + 1) % 10**6:06d}"}
    with ThreadPoolExecutor(25) as pool:
        statuses = list(pool.map(lambda _: server.request("POST", VERIFY, wrong)[0], range(50)))
    assert (statuses.count(401), statuses.count(429)) == (5, 45)
    right = {"email": "guess@example.com", "code": code}
    assert server.request("POST", VERIFY, right)[0] == 429, "the code is dead"


def test_a_change_of_the_address_and_links_of_the_account_at_once(
    server: PylonServer, folder: Path, tmp_path: Path
) -> None:
    """Attack 22: one change wins, and no link from before it signs in afterwards."""
    old, new = "old@example.com", "new@example.com"
    with smtp_server(tmp_path, port=smtp_port(folder)) as smtp:
        send(server, old)
        body = {"email": old, "code": received_code(smtp, old)}
        session = server.request("POST", VERIFY, body)[1]["token"]
        server.request("POST", "/api/auth/magic-link/send", {"email": old})
        wait_until("the link", lambda: len(mails_to(smtp, old)) >= 2)
        magic = token_of(mails_to(smtp, old)[-1])
        path = "/api/auth/email/change/request"
        assert server.request("POST", path, {"newEmail": new}, token=session)[0] == 200
        wait_until("the mail to the new address", lambda: mails_to(smtp, new))
        change = token_of(mails_to(smtp, new)[-1])
        requests = [
            ("/api/auth/email/change/confirm", change), ("/api/auth/magic-link/verify", magic),
        ] * 15
        with ThreadPoolExecutor(15) as pool:
            answers = list(pool.map(
                lambda each: (each[0], server.request("POST", each[0], {"token": each[1]})),
                requests,
            ))
        by_path = {path: [answer for p, answer in answers if p == path] for path, _ in requests}
        confirmed = [a for a in by_path["/api/auth/email/change/confirm"] if a[0] == 200]
        assert len(confirmed) == 1
        assert sum(a[0] == 200 for a in by_path["/api/auth/magic-link/verify"]) <= 1
        assert {answer[0] for _, answer in answers} <= {200, 401, 409, 503}
        user_id = confirmed[0][1]["user_id"]
        emails = {row["email"]: row["id"] for row in server.rows("User").values()}
        assert emails[new] == user_id
        # A link that was used after the change made an account of its own, and none of this one.
        assert emails.get(old) != user_id
        revert = wait_until("the way back", lambda: [
            mail for mail in mails_to(smtp, old) if "email-change/revert" in mail["text"]
        ])
    with ThreadPoolExecutor(10) as pool:
        statuses = list(pool.map(lambda _: server.request(
            "POST", "/api/auth/email/change/revert", {"token": token_of(revert[-1])}
        )[0], range(10)))
    assert statuses.count(200) == (0 if old in emails else 1)


def test_a_mail_server_that_is_down_delays_mails_only(
    server: PylonServer, folder: Path, tmp_path: Path
) -> None:
    started_s = time.monotonic()
    send(server, "later@example.com")
    assert time.monotonic() - started_s < 5
    wait_until("a failed attempt", lambda: "mail.failed" in server.log())
    assert "later@example.com" not in server.log()
    with smtp_server(tmp_path, port=smtp_port(folder)) as smtp:
        code = received_code(smtp, "later@example.com")
    body = {"email": "later@example.com", "code": code}
    assert server.request("POST", VERIFY, body)[0] == 200


def test_a_mail_server_that_hangs_stops_no_sign_in(
    server: PylonServer, folder: Path, tmp_path: Path
) -> None:
    with smtp_server(tmp_path, "hang", port=smtp_port(folder)):
        for number in range(12):  # more than are sent at once
            send(server, f"hang{number}@example.com")
        started_s = time.monotonic()
        assert server.request("GET", "/api/auth/providers")[0] == 200
        assert time.monotonic() - started_s < 5


def test_no_mail_is_lost_when_the_identity_process_is_killed(
    server: PylonServer, folder: Path, tmp_path: Path
) -> None:
    wanted = set()

    def try_to_send(address: str) -> bool:
        status, _, _ = server.request("POST", SEND, {"email": address})
        if status == 200:
            wanted.add(address)
        return status == 200

    with smtp_server(tmp_path, port=smtp_port(folder)) as smtp:
        for number in range(30):
            wait_until(
                "the process answers",
                lambda number=number: try_to_send(f"crash{number}@example.com"),
            )
            if number % 10 == 5:
                kill_identity(server)
        wait_until(
            "every mail that was promised",
            lambda: wanted <= {mail["to"][0] for mail in smtp.mails()}, 150.0,
        )
    assert len(wanted) == 30
    by_id = {(m["headers"]["message-id"], m["to"][0]) for m in smtp.mails()}
    assert len({address for _, address in by_id if address in wanted}) == 30


def test_a_code_is_used_once_although_the_process_is_killed(
    server: PylonServer, folder: Path, tmp_path: Path
) -> None:
    with smtp_server(tmp_path, port=smtp_port(folder)) as smtp:
        send(server, "kill@example.com")
        code = received_code(smtp, "kill@example.com")
    body = {"email": "kill@example.com", "code": code}
    statuses = []
    with ThreadPoolExecutor(8) as pool:
        first = [pool.submit(server.request, "POST", VERIFY, body) for _ in range(4)]
        kill_identity(server)
        statuses = [future.result()[0] for future in first]
    wait_until(
        "the process answers",
        lambda: server.request("POST", VERIFY, body)[0] != 503,
    )
    assert statuses.count(200) <= 1
    row = server.rows("User")
    assert len([user for user in row.values() if user["email"] == "kill@example.com"]) <= 1
    for _ in range(3):
        statuses.append(server.request("POST", VERIFY, body)[0])
    assert statuses.count(200) <= 1


def test_codes_and_addresses_are_in_no_log(server: PylonServer) -> None:
    log = server.log_path.read_text(errors="replace")
    assert "@example.com" not in log
