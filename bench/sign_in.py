"""Sign-ins with passwords beside reads: how many a second, and what the reads notice of them.

    python bench/sign_in.py [--seconds 10] [--rate 500] [--logins 0 4 16] [--threads 1]

Reads are ``GET /api/auth/me`` of sessions at a fixed rate over eight connections; sign-ins run in a
closed loop with so many at once. It prints the sign-ins a second, the p50 and p99 of both, and the
PSS of the processes before and after; also the CPU time that the identity process spends on one
sign-in, and that of one hash, which a busy machine changes least. Bar: 20 sign-ins a second on one
core while 500 reads a second keep their p99 at 25 ms or less; 70 MB of PSS for the identity
process.

The client takes CPU of the same machine, so the figures are lower bounds.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argon2

sys.path.insert(0, str(Path(__file__).parent))
import server as srv

PASSWORD = "four random words here"
ACCOUNTS = 16
READERS = 8
MANIFEST = {
    "manifest_version": 1, "name": "bench", "version": "1", "routes": [],
    "auth": {"user": {"entity": "User"}},
    "entities": [{
        "name": "User", "crdt": False, "indexes": [],
        "fields": [{"name": "email", "type": "string", "optional": False, "unique": True}],
    }],
    "policies": [{"name": "own", "entity": "User", "allow": "auth.userId == data.id"}],
}


class Connection:
    """One connection that stays open."""

    def __init__(self, port: int) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = None
    ) -> tuple[int, Any]:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        raw = None if body is None else json.dumps(body).encode()
        self._http.request(method, path, raw, headers)
        answer = self._http.getresponse()
        text = answer.read()
        return answer.status, json.loads(text) if text else None


class Times:
    """The durations of requests of one kind, and how many failed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.spent_ms: list[float] = []
        self.failed = 0

    def note(self, spent_s: float, *, ok: bool) -> None:
        with self._lock:
            self.spent_ms.append(spent_s * 1e3)
            self.failed += not ok

    def part(self, share: float) -> float:
        ordered = sorted(self.spent_ms) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def read_at_rate(port: int, token: str, period_s: float, end_s: float, times: Times) -> None:
    """Read at fixed times; a late answer counts from the time that it was due."""
    connection = Connection(port)
    due_s = time.perf_counter()
    while due_s < end_s:
        time.sleep(max(0.0, due_s - time.perf_counter()))
        status, _ = connection.ask("GET", "/api/auth/me", token=token)
        times.note(time.perf_counter() - due_s, ok=status == 200)
        due_s += period_s


def sign_in(port: int, email: str, end_s: float, times: Times) -> None:
    """Sign in again and again."""
    connection = Connection(port)
    while (started_s := time.perf_counter()) < end_s:
        status, _ = connection.ask(
            "POST", "/api/auth/password/login", {"email": email, "password": PASSWORD}
        )
        times.note(time.perf_counter() - started_s, ok=status == 200)


def pss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def measure(
    port: int, tokens: list[str], logins: int, rate: float, seconds: float
) -> tuple[Times, Times]:
    """Run reads and sign-ins side by side."""
    reads, signs = Times(), Times()
    end_s = time.perf_counter() + seconds
    jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (read_at_rate, (port, tokens[n], READERS / rate, end_s, reads)) for n in range(READERS)
    ]
    jobs += [
        (sign_in, (port, f"user{n % ACCOUNTS}@example.com", end_s, signs)) for n in range(logins)
    ]
    threads = [threading.Thread(target=job, args=args) for job, args in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return reads, signs


def cpu_s(server: srv.Server, pids: dict[str, int]) -> dict[str, float]:
    """Return the CPU time of each process until now."""
    return {name: used[1] for name, used in server.usage(pids).items()}


def hash_cpu_s() -> float:
    """Return the CPU time of one hash here, at the parameters of the server: the least of five."""
    hasher = argon2.PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, salt_len=16)
    spent_s = []
    for _ in range(5):
        started_s = time.thread_time()
        hasher.hash(PASSWORD)
        spent_s.append(time.thread_time() - started_s)
    return min(spent_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--logins", type=int, nargs="+", default=[0, 4, 16])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    env = {
        "PYLON_AUTH_RATES": "false", "PYLON_HTTP_WORKERS": "1",
        "PYLON_RATE_LIMIT_MAX": "0", "PYLON_RATE_LIMIT_MAX_AUTHED": "0",
        "PYLON_AUTH_HASH_THREADS": str(args.threads),
    }
    with srv.served(MANIFEST, **env) as server:
        first = Connection(server.port)
        pids = server.processes()
        before = {name: pss_mib(pid) for name, pid in pids.items()}
        tokens = []
        for n in range(ACCOUNTS):
            status, body = first.ask("POST", "/api/auth/password/register", {
                "email": f"user{n}@example.com", "password": PASSWORD,
            })
            assert status == 200, body
            tokens.append(body["token"])
        print("sign-ins at once | a second | p50, p99 ms | failed | reads a second | p50, p99 ms")
        for logins in args.logins:
            used_s = cpu_s(server, pids)
            reads, signs = measure(server.port, tokens, logins, args.rate, args.seconds)
            used_s = {name: now - used_s[name] for name, now in cpu_s(server, pids).items()}
            print(
                f"{logins} | {len(signs.spent_ms) / args.seconds:.1f} | "
                f"{signs.part(0.5):.1f}, {signs.part(0.99):.1f} | {signs.failed} | "
                f"{len(reads.spent_ms) / args.seconds:.0f} | "
                f"{reads.part(0.5):.2f}, {reads.part(0.99):.2f}"
            )
            if logins:
                spent = {name: used / len(signs.spent_ms) * 1e3 for name, used in used_s.items()}
                print(
                    f"  CPU for each sign-in: identity {spent['identity/1']:.1f} ms, of which "
                    f"{hash_cpu_s() * 1e3:.1f} ms are one hash"
                )
        after = {name: pss_mib(pid) for name, pid in pids.items()}
        for name in pids:
            print(f"PSS of {name}: {before[name]:.1f} MiB, {after[name]:.1f} after")


if __name__ == "__main__":
    main()
