"""Around every request: ids, failures, bodies, HEAD, metrics, and the server about itself."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from pylon import limits, metrics
from pylon.errors import InternalError, WriteQueueFull
from tests.support.api import ADMIN_TOKEN, METRICS_TOKEN, ApiStage, serve_api
from tests.support.measured import total
from tests.test_api_sync import MANIFEST

pytestmark = pytest.mark.stores


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiStage]:
    with serve_api(tmp_path, MANIFEST) as made:
        yield made


def test_a_request_id_is_taken_over_or_made(server: ApiStage) -> None:
    given = server.call("GET", "/api/auth/me", headers={"X-Request-Id": "trace-1.a_B"})
    assert given.headers["x-request-id"] == "trace-1.a_B"
    for bad in ("a b", "x" * 129, "é", "a\tb", ""):
        made = server.call("GET", "/api/auth/me", headers={"X-Request-Id": bad})
        assert made.headers["x-request-id"] != bad
        assert len(made.headers["x-request-id"]) == 16


@pytest.mark.parametrize("error", [
    RuntimeError("secret detail"), InternalError("secret detail"),
], ids=["unexpected", "of the writer"])
def test_a_defect_shows_no_details(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch, error: Exception, capfd: Any
) -> None:
    def broken(op: object) -> None:
        raise error

    monkeypatch.setattr(server.writer, "submit", broken)
    answer = server.call("POST", "/api/entities/Note", {"text": "x"})
    assert answer.status_code == 500
    assert answer.json["error"]["code"] == "INTERNAL"
    assert "secret detail" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
    assert "secret detail" in capfd.readouterr().err
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_full_queue_says_when_to_try_again(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(op: object) -> None:
        raise WriteQueueFull("full")

    monkeypatch.setattr(server.writer, "submit", full)
    answer = server.call("POST", "/api/entities/Note", {"text": "x"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_a_body_over_the_limit_is_refused_by_its_length(server: ApiStage) -> None:
    answer = server.call(
        "POST", "/api/entities/Note", b"{}", headers={"Content-Length": "11534418"}
    )
    assert answer.status_code == 413
    assert answer.json == {"error": {
        "code": "PAYLOAD_TOO_LARGE",
        "message": "Content-Length 11534418 exceeds max of 10485760",
    }}


def test_a_body_that_is_cut_short_is_not_json(server: ApiStage) -> None:
    answer = server.call(
        "POST", "/api/entities/Note", b'{"text":"x"}', headers={"Content-Length": "13"}
    )
    assert answer.json["error"]["code"] == "INVALID_JSON"


def test_bodies_are_json_whatever_their_type_says(server: ApiStage) -> None:
    answer = server.call(
        "POST", "/api/entities/Note", b'{"text":"x"}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    assert answer.status_code == 201


@pytest.mark.parametrize("target", [
    "/health", "/livez", "/readyz", "/api/auth/me", "/api/entities/Note",
    "/api/entities/Note/x", "/api/sync/pull", "/api/manifest", "/api/client-config", "/nope",
])
def test_head_answers_like_get_without_a_body(server: ApiStage, target: str) -> None:
    got, head = server.call("GET", target), server.call("HEAD", target)
    assert head.status_code == got.status_code
    assert head.content == b""
    volatile = {"x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in volatile} == {
        k: v for k, v in got.headers.items() if k not in volatile
    }


@pytest.mark.parametrize("path", [
    "/api/entities/Note/%ff%fe", "/api/entities/%c3%28", "/%ff", "/api/entities/Note/%00",
    "/api/lookup/Note/text/%ed%a0%80", "/api/sync/pull?since=%ff", "/api/entities/Note/",
    "/api/entities//", "/api/entities/Note?limit=%00", "/api/entities/Note/%2e%2e%2f",
])
def test_strange_paths_never_break_anything(server: ApiStage, path: str) -> None:
    assert server.call("GET", path).status_code in (200, 400, 403, 404)


def test_requests_are_counted_by_template_and_probes_are_not(server: ApiStage) -> None:
    def counted(route: str, status: str = "200") -> float:
        return total(metrics.HTTP_REQUESTS, route=route, status=status)

    template = "/api/entities/{entity}/{row_id}"
    before = counted(template, "404"), counted("none", "404"), counted("/health")
    server.call("GET", "/api/entities/Note/a")
    server.call("GET", "/api/entities/Note/b")
    server.call("GET", "/some/path")
    server.call("GET", "/health")
    assert counted(template, "404") == before[0] + 2
    assert counted("none", "404") == before[1] + 1
    assert counted("/health") == before[2] == 0


def test_readiness_needs_every_role_and_a_fresh_report(server: ApiStage) -> None:
    server.ready(http=(2, 2), ws=(1, 1))
    assert server.call("GET", "/readyz").json["status"] == "ready"
    server.ready(http=(2, 1), ws=(1, 1))
    answer = server.call("GET", "/readyz")
    assert answer.status_code == 503
    assert answer.json["checks"]["role.http"] == {
        "ok": False, "problem": "1 of 2 workers ready",
    }
    server.ready(http=(2, 2), ws=(1, 1))
    server.clock.advance(6)
    checks = server.call("GET", "/readyz").json["checks"]
    assert checks["supervisor"] == {"ok": False, "problem": "last report 6 s ago"}


def test_clients_are_told_where_the_other_ports_are(server: ApiStage) -> None:
    answer = server.call("GET", "/api/client-config", headers={"Host": "app.local:4321"})
    assert answer.json == {
        "name": "sync", "version": "1.0.0",
        "urls": {
            "http": "http://app.local:4321", "ws": "ws://app.local:4322/",
            "sse": "http://app.local:4323/events", "shards": "ws://app.local:4324/",
        },
        "ports": {"http": 4321, "ws": 4322, "sse": 4323, "shards": 4324},
    }


def test_settings_and_switched_off_roles_show_in_the_addresses(tmp_path: Path) -> None:
    environ = {
        "PYLON_PUBLIC_URL": "https://api.example.com", "PYLON_WS_URL": "wss://api.example.com/ws",
        "PYLON_SSE_WORKERS": "0", "PYLON_TRUST_PROXY_HOPS": "1",
    }
    with serve_api(tmp_path, MANIFEST, environ) as server:
        answer = server.call("GET", "/api/client-config", headers={
            "Host": "[::1]:80", "X-Forwarded-Proto": "https",
        })
        assert answer.json["urls"] == {
            "http": "https://api.example.com", "ws": "wss://api.example.com/ws", "sse": None,
            "shards": "wss://[::1]:4324/",
        }
        assert answer.json["ports"]["sse"] is None


def test_rules_show_in_the_manifest_to_admins_only(server: ApiStage) -> None:
    assert "allowWrite" not in server.call("GET", "/api/manifest?full=1").text
    assert "allowWrite" not in server.call("GET", "/api/manifest", token=ADMIN_TOKEN).text
    full = server.call("GET", "/api/manifest?full=1", token=ADMIN_TOKEN)
    assert full.json["policies"] == MANIFEST["policies"]
    assert server.call("GET", "/api/manifest").json["entities"][0]["name"] == "Note"


def test_the_metrics_token_reads_metrics_and_nothing_else(server: ApiStage) -> None:
    # 503: past the gate; there is no supervisor here to answer.
    assert server.call("GET", "/metrics", token=METRICS_TOKEN).status_code == 503
    assert server.call("GET", "/metrics", token=ADMIN_TOKEN).status_code == 503
    assert not server.call("GET", "/api/auth/me", token=METRICS_TOKEN).json["is_admin"]


def test_reset_needs_memory_dev_mode_and_this_machine(tmp_path: Path) -> None:
    environ = {"PYLON_DEV_MODE": "1", "PYLON_IN_MEMORY": "1"}
    with serve_api(tmp_path, MANIFEST, environ) as server:
        server.call("POST", "/api/entities/Note", {"text": "x"})
        target = "/api/__test__/reset"
        for more in ({"headers": {"X-Forwarded-For": "127.0.0.1"}}, {"remote_addr": "10.0.0.9"}):
            assert server.call("POST", target, **more).json["error"]["code"] == "RESET_REFUSED"
        assert server.call("GET", "/api/entities/Note").json["count"] == 1
        assert server.call("POST", target).json == {"reset": True}
        assert server.call("GET", "/api/entities/Note").json["count"] == 0


def test_reset_is_refused_for_a_database_file(tmp_path: Path) -> None:
    with serve_api(tmp_path, MANIFEST, {"PYLON_DEV_MODE": "1"}) as server:
        answer = server.call("POST", "/api/__test__/reset")
        assert answer.status_code == 403
        assert "PYLON_IN_MEMORY" in answer.json["error"]["hint"]


def test_a_list_may_not_ask_for_more_than_the_setting(tmp_path: Path) -> None:
    with serve_api(tmp_path, MANIFEST, {"PYLON_LIST_LIMIT": "2"}) as server:
        for _ in range(3):
            server.call("POST", "/api/entities/Note", {"text": "x"})
        listed = server.call("GET", "/api/entities/Note").json
        assert (listed["count"], listed["limit"]) == (2, None)
        refused = server.call("GET", "/api/entities/Note?limit=3")
        assert refused.json["error"]["code"] == "LIMIT_EXCEEDED"
        assert "PYLON_LIST_LIMIT" in refused.json["error"]["message"]


class NeverArrives(io.BytesIO):
    """A request body of a client that says nothing more."""

    def read(self, size: int | None = -1, /) -> bytes:
        gevent.sleep(3600)
        return b""


def test_a_body_that_does_not_arrive_is_given_up(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_REQUEST_S", 0.01)
    answer = server.call(
        "POST", "/api/entities/Note", headers={"Content-Length": "10"},
        extras={"wsgi.input": NeverArrives()},
    )
    assert answer.status_code == 408
    assert answer.json["error"]["code"] == "REQUEST_TIMEOUT"


def test_slow_requests_are_logged(
    server: ApiStage, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    real = server.writer.submit

    def slow(op: Any) -> Any:
        server.clock.advance(2)
        return real(op)

    monkeypatch.setattr(server.writer, "submit", slow)
    server.call("GET", "/api/entities/Note", headers={"X-Request-Id": "quick"})
    server.call("POST", "/api/entities/Note", {"text": "x"}, headers={"X-Request-Id": "slow"})
    logged = capfd.readouterr().err
    assert "request.slow" in logged
    assert '"slow"' in logged
    assert "quick" not in logged
