"""The cost of a session for a read: get by id without a session, with a token, a cookie, and a JWT.

    python bench/session_reads.py [--seconds 3] [--rounds 5] [--connections 16]

Prints requests/s and the CPU time of the HTTP worker for each request, and the ratios to a read
without a session. The kinds take turns in each round; the figures are those of the best round,
since other programs only take time away. One HTTP worker, on
loopback, with wrk.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import server as srv
from http_load import ROWS, run_wrk, wrk_script

SECRET = "0123456789abcdef" * 2  # of JWTs
READ = 'return get("/api/entities/Item/" .. row_id())'


def sign_jwt(user_id: str) -> str:
    """Return a JWT as a backend that has the secret makes it."""
    now_s = int(time.time())
    claims = {"iss": "pylon", "sub": user_id, "iat": now_s, "exp": now_s + 3_600}
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    text = ".".join(encode(json.dumps(part).encode()) for part in parts)
    return f"{text}.{encode(hmac.digest(SECRET.encode(), text.encode(), 'sha256'))}"


def encode(raw: bytes) -> str:
    """Return bytes as base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def main() -> int:
    """Run all rounds; exit code 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=3, help="for each run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=16)
    args = parser.parse_args()
    wrk = shutil.which("wrk")
    if wrk is None:
        print("session_reads: skipped: wrk is not installed (make test-tools)")
        return 0
    with srv.served(PYLON_HTTP_WORKERS="1", PYLON_JWT_SECRET=SECRET) as server:
        ids = srv.fill(server, ROWS)
        minted = server.request("POST", "/api/auth/session", {"user_id": "ada"})["token"]
        with_token = wrk_script(minted, "x", ids, READ)
        line = f'["Authorization"] = "Bearer {minted}", '
        scripts = {
            "none": with_token.replace(line, ""),
            "token": with_token,
            "jwt": wrk_script(sign_jwt("ada"), "x", ids, READ),
            "cookie": with_token.replace(line, f'["Cookie"] = "bench_session={minted}", '),
        }
        rates: dict[str, list[float]] = {name: [] for name in scripts}
        cpu_us: dict[str, list[float]] = {name: [] for name in scripts}
        worker = {"http": server.processes()["http/1"]}
        for number in range(args.rounds):
            for name, script in scripts.items():
                before_s = server.usage(worker)["http"][1]
                run = run_wrk(
                    wrk, f"http://127.0.0.1:{server.port}", script, args.connections,
                    args.seconds, number,
                )
                used_s = server.usage(worker)["http"][1] - before_s
                assert run["errors"] == 0, run
                rates[name].append(run["requests_per_s"])
                cpu_us[name].append(used_s / run["requests_per_s"] / args.seconds * 1e6)
    for name in scripts:
        rate, cpu = max(rates[name]), min(cpu_us[name])
        print(
            f"{name:<7} {rate:8,.0f}/s ({rate / max(rates['none']):.2f})  "
            f"{cpu:5.1f} us of CPU ({min(cpu_us['none']) / cpu:.2f})"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
