"""Promise 2 under kills: 40 published clients miss nothing when processes die within 0.5 s.

Each round also cuts half of the clients off, and writes more events than a hub would replay on a
guess. `bench/kills.py --rounds 50` is the same at length.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.kill_rounds import KINDS, Trial

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.timeout(300), pytest.mark.stores]

CLIENTS = 40
# The pairs whose deaths lose hints and hub together come more than once.
ROUNDS = ("http+ws", "http+sse", *KINDS, "http+ws")


def test_clients_miss_nothing_when_two_roles_die_or_the_server_restarts(tmp_path: Path) -> None:
    with Trial(tmp_path, CLIENTS, seed=7).running() as trial:
        reports = [trial.round(kind) for kind in ROUNDS]
    assert [(report.kind, report.missed) for report in reports if report.missed] == []
    assert sum(report.reconnects for report in reports) > len(ROUNDS) * CLIENTS // 2
