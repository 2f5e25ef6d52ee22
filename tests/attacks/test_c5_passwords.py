"""C5: passwords against a server: what times reveal, what large ones cost (spec/identity.md §5)."""

from __future__ import annotations

import gc
import http.client
import json
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from pylon import limits
from tests.support.manifests import sign_in_app
from tests.support.server import PylonServer

LOGIN: Final = "/api/auth/password/login"
REGISTER: Final = "/api/auth/password/register"
RESET: Final = "/api/auth/password/reset/request"
PASSWORD: Final = "four random words here"
# Pairs of a known and an unknown address: 200 requests of each kind. More find less.
SAMPLES: Final = int(os.environ.get("PYLON_TEST_TIMING_SAMPLES", "100"))
ROUNDS: Final = 3  # a busy machine may spoil one
NO_DIFFERENCE: Final = 0.01  # the least p of a Mann-Whitney test that passes
CLOSE: Final = 0.05  # of two medians
SETTLE_S: Final = 0.015  # the mail of a request is sent after its answer, and not in the next one


@pytest.fixture(scope="module")
def server(
    processes: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PylonServer]:
    folder: Path = tmp_path_factory.mktemp("passwords")
    made = PylonServer(folder, sign_in_app(), {
        "PYLON_AUTH_RATES": "false", "PYLON_REQUIRE_EMAIL_VERIFICATION": "true",
        "PYLON_EMAIL_PROVIDER": "file", "PYLON_EMAIL_FROM": "noreply@example.com",
        "PYLON_EMAIL_FOLDER": str(folder / "mails"), "PYLON_HTTP_WORKERS": "1",
        "PYLON_WS_WORKERS": "0", "PYLON_SSE_WORKERS": "0", "PYLON_SHARD_WORKERS": "0",
    })
    try:
        yield made.start()
    finally:
        made.close()


class Client:
    """One connection that stays open, so that only the server's own time is measured."""

    def __init__(self, server: PylonServer) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=60)

    def post(
        self, path: str, body: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, float]:
        """Send a request. Returns the status and the seconds until the answer was there."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        started_s = time.perf_counter()
        kind = "application/x-www-form-urlencoded" if path == "/auth/reset" else "application/json"
        self._connection.request("POST", path, raw, {"Content-Type": kind, **(headers or {})})
        answer = self._connection.getresponse()
        answer.read()
        return answer.status, time.perf_counter() - started_s


def rank_sum_p(ones: list[float], others: list[float]) -> float:
    """The two-sided p of a Mann-Whitney test (the normal approximation; ties do not occur)."""
    both = sorted([(value, 0) for value in ones] + [(value, 1) for value in others])
    ranks = sum(rank for rank, (_, group) in enumerate(both, 1) if group == 0)
    n, m = len(ones), len(others)
    u = ranks - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


def test_the_judge_finds_a_difference_of_a_tenth() -> None:
    noise = [1.0 + 0.2 * math.sin(n * 12.9898) for n in range(SAMPLES)]
    assert rank_sum_p(noise, [1.1 * value for value in noise[::-1]]) < NO_DIFFERENCE
    assert rank_sum_p(noise[::2], noise[1::2]) > NO_DIFFERENCE
    assert noise_of(noise) < CLOSE < noise_of([1.0] * 50 + [1.1] * 50)


def compare(
    client: Client, path: str, body_of: Callable[[bool, int], Any], status: int, settle_s: float
) -> tuple[float, float, float, float]:
    """Ask for known and unknown addresses by turns. Returns both medians, the p, and the noise:
    how far the medians of the known differ among themselves, at most, as do those of the unknown.
    """
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(SAMPLES):
        order = (True, False) if number % 2 else (False, True)
        for is_known in order:
            found, spent_s = client.post(path, body_of(is_known, number))
            assert found == status
            times[is_known].append(spent_s)
            time.sleep(settle_s)
    return (
        statistics.median(times[True]), statistics.median(times[False]),
        rank_sum_p(times[True], times[False]), max(noise_of(group) for group in times),
    )


def noise_of(times: list[float]) -> float:
    """How far two halves of one group differ in their medians: by turns, and early from late."""
    half = len(times) // 2
    halves = [(times[::2], times[1::2]), (times[:half], times[half:])]
    return max(abs(statistics.median(a) / statistics.median(b) - 1) for a, b in halves)


@pytest.mark.parametrize("path", [
    RESET, "/api/auth/magic/send", "/api/auth/magic-link/send", "/auth/reset",
])
def test_no_answer_about_a_mail_is_early(server: PylonServer, path: str) -> None:
    client = Client(server)
    headers = {"Sec-Fetch-Site": "same-origin"}
    for number in range(3):
        email = f"early{number}@example.com"
        body: Any = b"email=" + email.encode() if path == "/auth/reset" else {"email": email}
        status, spent_s = client.post(path, body, headers)
        assert status == 200
        assert spent_s >= limits.MAIL_ANSWER_S


@pytest.mark.parametrize("kind", ["login", "reset", "register"])
def test_times_do_not_tell_whether_an_address_has_an_account(
    server: PylonServer, kind: str
) -> None:
    """Attack 9: 200 requests of each kind, known and unknown by turns."""
    client = Client(server)
    body = {"email": f"{kind}@example.com", "password": PASSWORD}
    assert client.post(REGISTER, body)[0] == 202
    seen = []
    gc.disable()
    try:
        for round_ in range(ROUNDS):

            def body_of(is_known: bool, n: int, round_: int = round_) -> Any:
                name = kind if is_known else f"no{kind}{round_}x{n}"
                if kind == "reset" and not is_known:
                    name = f"no{kind}"  # as often as the known one, so it has older links too
                email = f"{name}@example.com"
                return {"email": email} if kind == "reset" else {
                    "email": email, "password": "another password"
                }

            path = {"login": LOGIN, "reset": RESET, "register": REGISTER}[kind]
            known_s, unknown_s, p, noise = compare(
                client, path, body_of, {"login": 401, "reset": 200, "register": 202}[kind],
                0.0 if kind == "login" else SETTLE_S,
            )
            seen.append((
                round(known_s * 1e3, 3), round(unknown_s * 1e3, 3), round(p, 4), round(noise, 3),
            ))
            # A machine with other work drifts: what differs less than equals do is no difference.
            if p > NO_DIFFERENCE and abs(known_s / unknown_s - 1) < max(CLOSE, noise):
                return
    finally:
        gc.enable()
    pytest.fail(f"medians of known and unknown in ms, p, and noise: {seen}")


def test_a_huge_password_is_refused_without_a_hash(server: PylonServer) -> None:
    """Attack 15: 10 MB, 64 KiB and 1,025 bytes."""
    client = Client(server)
    email = "huge@example.com"
    long = {"email": email, "password": "x" * 1_025}
    assert client.post(REGISTER, long)[0] == 400
    assert client.post(LOGIN, {"email": email, "password": "x" * 65_536})[0] == 413
    body = json.dumps({"email": email, "password": "x" * 10_000_000}).encode()
    assert server.request("POST", LOGIN, body)[0] == 413
    assert client.post(LOGIN, long)[0] == 401


def test_a_rush_of_sign_ins_is_bounded_and_reads_go_on(server: PylonServer) -> None:
    """Attack 15: 160 sign-ins at once. The queue takes 64, the others get 503 with Retry-After."""
    answers: list[tuple[int, str | None]] = []

    def sign_in(number: int) -> None:
        status, _, headers = server.request(
            "POST", LOGIN, {"email": f"rush{number}@example.com", "password": PASSWORD}
        )
        answers.append((status, headers.get("retry-after")))

    threads = [threading.Thread(target=sign_in, args=(n,)) for n in range(160)]
    for thread in threads:
        thread.start()
    reads = 0
    while any(thread.is_alive() for thread in threads):
        assert server.request("GET", "/api/auth/me")[0] == 200
        reads += 1
    for thread in threads:
        thread.join(60)
    assert reads > 3
    assert {status for status, _ in answers} <= {401, 503}
    assert all(retry == "1" for status, retry in answers if status == 503)
    assert any(status == 401 for status, _ in answers)  # a busy machine drops those that wait long
    assert server.request("POST", LOGIN, {"email": "a@example.com", "password": PASSWORD})[0] == 401
