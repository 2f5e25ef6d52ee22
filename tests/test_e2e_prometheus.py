"""A real Prometheus scrapes a real server under load: each alert and panel has its answer."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.dashboards import CONFIG, RULES, alerts, metrics_of, queries
from tests.support.ports import reserve_base_port
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.sync_client import SyncClient
from tests.support.wait import wait_until

pytestmark = pytest.mark.usefixtures("processes")

Program = Callable[[str, str], str]
# Panels of what this server does not do: their queries are valid, and empty.
QUIET = {
    "pylon_writes_refused_total", "pylon_slow_clients_total", "pylon_client_recoveries_total",
    "pylon_unindexed_queries_total", "pylon_slow_queries_total", "pylon_rate_limited_total",
    "pylon_bus_messages_dropped_total", "pylon_identity_calls_total", "pylon_mails_total",
    "pylon_shards", "pylon_shard_inputs_rejected_total", "pylon_policy_lookup_seconds_total",
    "pylon_worker_restarts_total", "pylon_messages_received_total",
    "pylon_connections_closed_total", "pylon_admission_queue_length", "pylon_room_updates_total",
}


class Prometheus:
    """A Prometheus server that scrapes one Pylon each second."""

    def __init__(self, program: str, folder: Path, server: PylonServer) -> None:
        token = folder / "pylon.token"
        token.write_text(ADMIN_TOKEN)
        config = folder / "prometheus.yml"
        config.write_text(
            CONFIG.read_text().replace("15s", "1s")
            .replace("/etc/prometheus/pylon.rules.yml", str(RULES))
            .replace("/etc/prometheus/pylon.token", str(token))
            .replace("127.0.0.1:4321", f"127.0.0.1:{server.port}")
        )
        self.url = f"http://127.0.0.1:{reserve_base_port()}"
        self._log = (folder / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address={self.url.removeprefix('http://')}"],
            stdout=self._log, stderr=self._log,
        )

    def ask(self, path: str, **params: str) -> Any:
        """Return the data of an answer of the HTTP API."""
        query = urllib.parse.urlencode(params)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success"
        return body["data"]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()


@pytest.fixture
def prometheus(program: Program, tmp_path: Path, server: PylonServer) -> Iterator[Prometheus]:
    made = Prometheus(program("prometheus", "prometheus"), tmp_path, server)
    yield made
    made.close()


def work(server: PylonServer, token: str, user: str) -> None:
    """Reads, writes, errors and events, a little of each."""
    for number in range(20):
        server.request("POST", "/api/entities/Tick", {"n": number, "sender": user}, token=token)
    server.request("GET", "/api/entities/Tick", token=token)
    server.request("POST", "/api/query/Tick", {"n": 3}, token=token)
    server.request("GET", "/api/entities/Nothing", token=token)
    server.request("GET", "/nowhere")


def test_every_alert_and_every_panel_has_an_answer(
    server: PylonServer, prometheus: Prometheus
) -> None:
    token, user = server.guest()

    def is_scraped() -> bool:
        work(server, token, user)
        try:
            found = prometheus.ask("query", query="rate(pylon_http_requests_total[10s]) > 0")
        except OSError:
            return False
        return bool(found["result"])

    def have_run() -> bool:
        work(server, token, user)
        (group,) = prometheus.ask("rules")["groups"]
        return all(rule["lastEvaluation"] > "2" for rule in group["rules"])

    with SyncClient(server, "ws", token):
        wait_until("Prometheus has rates of this server", is_scraped)
        wait_until("all rules have been evaluated", have_run)
        (target,) = prometheus.ask("targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        (group,) = prometheus.ask("rules")["groups"]
        assert {rule["name"] for rule in group["rules"]} == {a["alert"] for a in alerts()}
        assert [rule["lastError"] for rule in group["rules"] if rule["health"] != "ok"] == []
        firing = {rule["name"] for rule in group["rules"] if rule["state"] == "firing"}
        assert firing <= {"PylonBackupMissing"}  # there is none yet
        empty = {
            query for query in queries() if not prometheus.ask("query", query=query)["result"]
        }
        silent = {query for query in empty if not metrics_of(query) & QUIET
                  and "5.." not in query}  # no request fails
        assert silent == set()
        assert len(empty) < len(queries()) / 3
