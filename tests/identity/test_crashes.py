"""Sign-in while processes are killed: no link is used twice, and nothing acknowledged is lost."""

from __future__ import annotations

import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email import message_from_binary_file, policy
from http.client import HTTPException
from pathlib import Path
from typing import Final

import pytest

from pylon import limits
from tests.support.manifests import sign_in_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

pytestmark = pytest.mark.stores

REGISTER: Final = "/api/auth/password/register"
LOGIN: Final = "/api/auth/password/login"
PASSWORD: Final = "four random words here"
KILLS: Final = 4


# Roles that no test of this module calls, so that each of its many starts costs less.
FEW: Final = {
    "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "0", "PYLON_SSE_WORKERS": "0",
    "PYLON_SHARD_WORKERS": "0",
}


@pytest.fixture
def server(make_server: Callable[..., PylonServer], tmp_path: Path) -> PylonServer:
    return make_server(
        sign_in_app(), PYLON_AUTH_RATES="false", PYLON_EMAIL_PROVIDER="file",
        PYLON_EMAIL_FROM="noreply@example.com",
        PYLON_EMAIL_FOLDER=str(tmp_path / "server" / "mails"), **FEW,
    ).start()


class Client:
    """Registers and signs in without a pause, in a thread; keeps what was acknowledged."""

    def __init__(self, server: PylonServer, name: str) -> None:
        self._server = server
        self._name = name
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.registered: dict[str, str] = {}  # address to user id
        self.tokens: dict[str, str] = {}  # token to user id
        self.statuses: set[int] = set()

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(60)

    def _run(self) -> None:
        for number in itertools.count():
            email = f"{self._name}{number}@example.com"
            while not self._ended.is_set() and not self._try(REGISTER, email):
                pass
            if self._ended.is_set():
                return
            self._try(LOGIN, email)

    def _try(self, path: str, email: str) -> bool:
        """Whether the account is there, as far as the answer says."""
        try:
            status, body, _ = self._server.request(
                "POST", path, {"email": email, "password": PASSWORD}
            )
        except OSError:
            return False  # the supervisor was killed
        except Exception:  # noqa: BLE001  (a connection that ends in the middle of an answer)
            return False
        self.statuses.add(status)
        if status == 200:
            self.registered.setdefault(email, body["user_id"])
            assert self.registered[email] == body["user_id"]
            self.tokens[body["token"]] = body["user_id"]
        return status in (200, 409)


def check(server: PylonServer, clients: list[Client]) -> None:
    """Every acknowledged account signs in, and every acknowledged token is a session."""
    for client in clients:
        assert client.registered and client.statuses <= {200, 409, 503}, client.statuses
        for token, user_id in client.tokens.items():
            _, me, _ = server.request("GET", "/api/auth/me", token=token)
            assert me["user_id"] == user_id
        for email, user_id in client.registered.items():
            status, body, _ = server.request(
                "POST", LOGIN, {"email": email, "password": PASSWORD}
            )
            assert (status, body.get("user_id")) == (200, user_id), email
    rows = server.rows("User")
    addresses = [row["email"] for row in rows.values()]
    assert len(addresses) == len(set(addresses))  # no half account: each row has its identity
    for email in addresses:
        assert server.request("POST", LOGIN, {"email": email, "password": PASSWORD})[0] == 200


@contextmanager
def clients_of(server: PylonServer) -> Iterator[list[Client]]:
    with Client(server, "a") as one, Client(server, "b") as two:
        yield [one, two]


def test_killed_identity_processes_lose_no_account_and_no_session(server: PylonServer) -> None:
    with clients_of(server) as clients:
        for round_ in range(KILLS):
            before = len(clients[0].registered)
            wait_until("more accounts", lambda b=before: len(clients[0].registered) > b + 1)
            [pid] = server.pids("identity")
            os.kill(pid, signal.SIGKILL)
            wait_until(
                f"another process after kill {round_}",
                lambda p=pid: server.pids("identity") not in ([], [p]),
            )
    check(server, clients)


def test_a_killed_server_loses_no_account_and_no_session(server: PylonServer) -> None:
    with clients_of(server) as clients:
        for _ in range(2):
            before = len(clients[0].registered)
            wait_until("more accounts", lambda b=before: len(clients[0].registered) > b + 1)
            server.kill()
            server.start()
    check(server, clients)


def reset_token(server: PylonServer, email: str) -> str:
    """The token of a new reset mail."""
    before = set(links(server))
    body = {"email": email}
    assert server.request("POST", "/api/auth/password/reset/request", body)[0] == 200
    wait_until("a mail", lambda: set(links(server)) > before)
    [token] = set(links(server)) - before
    return token


def links(server: PylonServer) -> list[str]:
    """The tokens of the reset mails that were sent."""
    found = []
    for path in (server.folder / "mails").glob("*.eml"):
        with path.open("rb") as file:
            mail = message_from_binary_file(file, policy=policy.default)
        part = mail.get_body(("plain",))
        assert part is not None
        found += re.findall(r"reset-password\?token=([0-9a-f]{64})", part.get_content())
    return found


def use_at_once(server: PylonServer, token: str, meanwhile: Callable[[], None]) -> list[int]:
    """Use a link by fifty requests at once; the statuses."""
    statuses: list[int] = []

    def use(number: int) -> None:
        body = {"token": token, "newPassword": f"new password number {number}"}
        statuses.append(
            server.request("POST", "/api/auth/password/reset/complete", body)[0]
        )

    threads = [threading.Thread(target=use, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join(60)
    return statuses


@pytest.mark.parametrize("is_killed", [False, True], ids=["alive", "killed"])
def test_a_link_is_used_once_by_fifty_requests_at_once(
    server: PylonServer, is_killed: bool
) -> None:
    """Attack 6; with a process that dies in the middle."""
    ann = {"email": "ann@example.com", "password": PASSWORD}
    assert server.request("POST", REGISTER, ann)[0] == 200
    token = reset_token(server, "ann@example.com")
    [pid] = server.pids("identity")

    def kill() -> None:
        if is_killed:
            time.sleep(0.3)
            os.kill(pid, signal.SIGKILL)

    statuses = use_at_once(server, token, kill)
    assert len(statuses) == 50 and set(statuses) <= {200, 401, 503}, statuses
    assert statuses.count(200) <= 1
    wait_until(
        "identity answers", lambda: server.request("GET", "/api/auth/providers")[0] == 200
    )
    passwords = [PASSWORD, *(f"new password number {n}" for n in range(50))]
    works = [
        password for password in passwords
        if server.request("POST", LOGIN, {**ann, "password": password})[0] == 200
    ]
    assert len(works) == 1
    if not is_killed or 200 in statuses:
        assert statuses.count(200) == 1 and works != [PASSWORD]
    if works != [PASSWORD]:  # used, whether it was acknowledged or not: never again
        body = {"token": token, "newPassword": "one more password"}
        assert server.request("POST", "/api/auth/password/reset/complete", body)[0] == 401


# --- kill -9 of the whole server within one flow -----------------------------------------------


class Sent:
    """A request of a thread, whose answer may never come."""

    def __init__(
        self, server: PylonServer, path: str, body: dict[str, str], token: str | None = None
    ) -> None:
        self._call = (server, path, body, token)
        self.status: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        server, path, body, token = self._call
        # The connection ends in the middle of an answer: there is no status.
        with suppress(OSError, HTTPException):
            self.status = server.request("POST", path, body, token=token)[0]

    def kill_after(self, delay_s: float) -> None:
        """Kill the server so long after the request was sent, and start it again."""
        server = self._call[0]
        time.sleep(delay_s)
        server.kill()
        self._thread.join(60)
        assert not self._thread.is_alive()
        server.start()


def is_signed_in(server: PylonServer, token: str) -> bool:
    return server.request("GET", "/api/auth/me", token=token)[1]["user_id"] is not None


def log_in(server: PylonServer, email: str, password: str, token: str | None = None) -> int:
    body = {"email": email, "password": password}
    return server.request("POST", LOGIN, body, token=token)[0]


DELAYS_S: Final = (0.0, 0.03, 0.06, 0.12)


def test_a_reset_that_a_crash_interrupts_is_done_or_not_begun(server: PylonServer) -> None:
    new = "entirely other words"
    complete = "/api/auth/password/reset/complete"
    for number, delay_s in enumerate(DELAYS_S):
        email = f"reset{number}@example.com"
        made = server.request("POST", REGISTER, {"email": email, "password": PASSWORD})
        assert made[0] == 200
        token = reset_token(server, email)
        body = {"token": token, "newPassword": new}
        sent = Sent(server, complete, body)
        sent.kill_after(delay_s)
        is_done = log_in(server, email, new) == 200
        assert log_in(server, email, PASSWORD) == (401 if is_done else 200)
        assert sent.status in ((None, 200) if is_done else (None, 503)), sent.status
        assert is_signed_in(server, made[1]["token"]) == (not is_done)
        again = server.request("POST", complete, body)[0]
        assert again == (401 if is_done else 200), "the link is used up with its effect"
        assert log_in(server, email, new) == 200


def test_rows_of_a_guest_are_all_carried_although_a_crash_interrupts(
    make_server: Callable[..., PylonServer],
) -> None:
    """More rows than one transaction carries, so that the job has some to do, too."""
    app = {**sign_in_app(), "references": "none"}  # a guest has no row that a field may name
    server = make_server(app, PYLON_AUTH_RATES="false", **FEW).start()
    count = limits.CARRIED_ROWS + 50
    for number, delay_s in enumerate(DELAYS_S):
        email = f"carry{number}@example.com"
        made = server.request("POST", REGISTER, {"email": email, "password": PASSWORD})
        assert made[0] == 200
        user_id = made[1]["user_id"]
        token, guest_id = server.guest()
        rows = [{"id": f"{number:02x}{n:038x}", "title": "t", "authorId": guest_id}
                for n in range(count)]
        imported = server.request(
            "POST", "/api/import", {"entities": {"Todo": rows}}, token=ADMIN_TOKEN
        )
        assert imported[1]["imported"] == count, imported[1]
        sent = Sent(server, LOGIN, {"email": email, "password": PASSWORD}, token)
        sent.kill_after(delay_s)
        if is_signed_in(server, token):  # the sign-in was not begun: the guest has all
            assert sent.status != 200
            assert count_rows(server, guest_id) == count
            assert log_in(server, email, PASSWORD, token) == 200
        wait_until("all rows are the user's", lambda u=user_id: count_rows(server, u) == count)
        assert count_rows(server, guest_id) == 0
        assert not is_signed_in(server, token)


def count_rows(server: PylonServer, author_id: str) -> int:
    body = {"count": "*", "where": {"authorId": author_id}}
    status, found, _ = server.request("POST", "/api/aggregate/Todo", body, token=ADMIN_TOKEN)
    assert status == 200, found
    number: int = found["rows"][0]["count"] if found["rows"] else 0
    return number
