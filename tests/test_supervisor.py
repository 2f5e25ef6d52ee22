"""The whole supervisor as a process: start, readiness, restarts, control socket, drain."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from pylon.errors import InvalidData
from tests.support.measured import page_values
from tests.support.ports import reserve_base_port
from tests.support.supervised import Maker, Supervised, supervised_maker
from tests.support.wait import WAIT_S, wait_until


@pytest.fixture
def make(processes: None, tmp_path: Path) -> Iterator[Maker]:
    with supervised_maker(tmp_path) as maker:
        yield maker


def test_start_status_and_a_complete_drain(make: Maker) -> None:
    it = make(PYLON_WS_WORKERS="2").start()
    assert it.process is not None
    status = it.status()
    assert {role: (r["wanted"], r["ready"]) for role, r in status["roles"].items()} == {
        "http": (1, 1), "ws": (2, 2), "sse": (1, 1), "shards": (1, 1), "identity": (1, 1),
    }
    assert len(status["roles"]["ws"]["pids"]) == 2
    assert status["ports"] == {
        role: it.port + n for n, role in enumerate(("http", "ws", "sse", "shards"))
    }
    assert (status["pid"], status["draining"]) == (it.process.pid, False)
    written = json.loads(Path(f"{it.db_path}.pid").read_text())
    assert (written["pid"], written["ports"]) == (it.process.pid, status["ports"])
    assert it.end() == 0, it.log()
    steps = [event["step"] for event in it.events("drain")]
    assert steps == [
        "announced", "not accepting", "http ended", "shards and identity ended",
        "ws and sse ended", "writer stopped", "flushed", "ended",
    ]
    ended = [line for line in it.log().splitlines() if line.endswith(" ended")]
    assert [line.split()[0] for line in ended[:1]] == ["http"], it.log()
    assert {line.split()[0] for line in ended[1:3]} == {"shards", "identity"}, it.log()
    assert not (it.folder / "run").exists()
    assert not Path(f"{it.db_path}-wal").exists()
    assert Path(f"{it.db_path}.pid").read_text() == ""
    assert it.start().end() == 0  # and again, on the same folder


def test_stop_by_the_control_socket_shows_each_step(make: Maker) -> None:
    it = make().start()
    assert it.process is not None
    lines = list(it.control.call("stop"))
    assert [line["step"] for line in lines][-2:] == ["flushed", "ended"]
    assert lines[-1]["done"]
    assert lines[-1]["exit_code"] == 0
    assert it.process.wait(WAIT_S) == 0


def test_while_draining_readiness_is_withdrawn_and_ports_close(make: Maker) -> None:
    it = make(PYLON_DRAIN_DELAY_S="1", STAND_IN_HTTP="slow").start()
    assert it.process is not None
    it.process.send_signal(signal.SIGTERM)
    status = wait_until("draining", lambda: (s := it.status()).get("draining") and s)
    assert not status["ready"]
    with socket.create_connection(("127.0.0.1", it.port + 1)):
        pass  # within the delay the ports still answer
    wait_until("ports closed", lambda: refuses(it.port + 1))
    assert it.process.wait(WAIT_S) == 0
    assert it.events("drain")[-1]["at_s"] >= 2


def refuses(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_a_second_signal_cuts_the_drain_short(make: Maker) -> None:
    it = make(STAND_IN_WS="stubborn", PYLON_DRAIN_SECS="60").start()
    assert it.process is not None
    it.process.send_signal(signal.SIGTERM)
    wait_until("shards and identity ended", lambda: any(
        e["step"] == "shards and identity ended" for e in it.events("drain")))
    assert it.end(signal.SIGINT) == 75
    steps = [event["step"] for event in it.events("drain")]
    assert steps[-3:] == ["writer stopped", "flushed", "ended"]
    assert not Path(f"{it.db_path}-wal").exists()


def test_a_drain_says_what_it_waits_for(make: Maker) -> None:
    it = make(STAND_IN_WS="slow", LIMIT_DRAIN_REPORT_S="0.2").start()
    assert it.end() == 0
    waiting = [e for e in it.events("drain") if e["step"] == "waiting for ws and sse"]
    assert waiting and waiting[0]["connections"]["ws/1"] == 2, it.log()


def test_the_deadline_cuts_the_drain_short(make: Maker) -> None:
    it = make(STAND_IN_HTTP="stubborn", PYLON_DRAIN_SECS="0.1").start()
    assert it.end() == 75
    assert [e["killed"] for e in it.events("drain") if e["step"] == "http ended"] == [1]


@pytest.mark.parametrize("role", ["http", "ws"])
def test_a_killed_worker_comes_back(make: Maker, role: str) -> None:
    it = make().start()
    [pid] = it.status()["roles"][role]["pids"]
    os.kill(pid, signal.SIGKILL)
    status = wait_until("another one is ready", lambda: (
        (s := it.status())["roles"][role]["pids"] not in ([], [pid]) and s["ready"] and s))
    assert status["restarts"] == 1
    page = it.control.ask("metrics", format="text")["body"]
    assert page_values(page, "pylon_worker_restarts_total", role=role, reason="signal") == [1]
    # 5 of the dead one among it
    assert page_values(page, "pylon_messages_sent_total", role=role) == [10]
    assert it.end() == 0


def silent_children(it: Supervised) -> list[str]:
    return [event["child"] for event in it.events("child.silent")]


def test_a_silent_worker_is_aborted(make: Maker) -> None:
    it = make(STAND_IN_SSE="silent", LIMIT_HEARTBEAT_LOST_S="1.5")
    it.start(ready=False)
    # On a busy machine other workers may be silent for so short a time, too.
    wait_until("noticed", lambda: "sse/1" in silent_children(it))
    wait_until("another role is ready", lambda: it.status()["roles"]["ws"]["ready"] == 1)
    assert it.end() in (0, 75)


def test_an_arbiter_that_stands_still_is_replaced_though_its_workers_are_well(make: Maker) -> None:
    it = make(STAND_IN_HTTP="frozen", LIMIT_HEARTBEAT_LOST_S="1.5")
    it.start()
    wait_until("noticed", lambda: "http/1" in silent_children(it))
    assert ("http/1", "silent") in wait_until("replaced", lambda: [
        (event["child"], event["reason"]) for event in it.events("child.died")
        if event["child"] == "http/1"
    ])


def test_a_stopped_gunicorn_arbiter_is_replaced(make: Maker) -> None:
    """SIGSTOP: its workers serve, but none of them would be replaced."""
    it = make(STAND_IN="real", LIMIT_HEARTBEAT_LOST_S="5", LIMIT_ABORT_GRACE_S="0.2").start()
    worker = it.status()["roles"]["http"]["pids"][0]
    stat = Path(f"/proc/{worker}/stat").read_text()
    arbiter = int(stat.rpartition(")")[2].split()[1])
    os.kill(arbiter, signal.SIGSTOP)
    wait_until("replaced", lambda: [
        event for event in it.events("child.died") if event["pid"] == arbiter
    ])
    wait_until("served by others", lambda: it.status().get("ready") and (
        worker not in it.status()["roles"]["http"]["pids"]
    ), 40)
    assert arbiter in [event["pid"] for event in it.events("child.silent")]
    assert it.end() == 0


def test_a_role_that_cannot_stay_up_is_reported_and_not_ready(make: Maker) -> None:
    it = make(STAND_IN_SHARDS="dies", LIMIT_RESTART_DELAY_MAX_S="0.01").start(ready=False)
    wait_until("reported", lambda: it.events("role.failing"))
    status = it.status()
    assert status["roles"]["shards"]["failing"]
    assert status["roles"]["shards"]["ready"] == 0
    assert not status["ready"]
    assert it.end() == 0


def test_a_second_start_and_a_taken_port_are_refused(make: Maker) -> None:
    first = make().start()
    assert first.process is not None
    second = make(PYLON_PORT=str(reserve_base_port())).start(ready=False)
    assert second.process is not None
    assert second.process.wait(WAIT_S) == 78
    assert f"pid {first.process.pid}" in second.log()
    third = make("b", PYLON_SSE_PORT=str(first.port + 1)).start(ready=False)
    assert third.process is not None
    assert third.process.wait(WAIT_S) == 78
    assert f"Port {first.port + 1} on 127.0.0.1 is taken" in third.log()
    assert "PYLON_SSE_PORT (or PYLON_PORT + 2)" in third.log()
    assert first.end() == 0


def test_a_killed_supervisor_leaves_nothing_in_the_way(make: Maker) -> None:
    it = make().start()
    assert it.process is not None
    it.process.kill()
    it.process.wait()
    wait_until("ports are free", lambda: refuses(it.port))
    assert it.start().end() == 0


def test_a_seed_is_planted_once(make: Maker, tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    seed.write_text(json.dumps({"Todo": [{"title": str(n)} for n in range(1_500)]}))
    it = make(PYLON_SEED=str(seed)).start()
    status = it.status()
    assert it.events("seed.planted")[0]["rows"] == 1_500
    assert it.end() == 0
    assert it.start().status()["head_seq"] == status["head_seq"] > 0
    assert it.events("seed.skipped")
    assert it.end() == 0
    conn = apsw.Connection(str(it.db_path))
    assert conn.execute("SELECT count(*), count(DISTINCT title) FROM Todo").get == (1_500, 1_500)
    conn.close()


@pytest.mark.parametrize(("seed", "what"), [
    ('{"Nope": []}', "entities are: Todo"), ('{"Todo": 1}', "expected a list"), ("[]", "object"),
    ('{"Todo": [{"title": "a"}, {"titel": 1}]}', "Todo[1]"), ("{", "PYLON_SEED"),
    ('{"Todo": [{"title": "a"}, {"title": "a"}]}', "Todo[1]"),
])
def test_a_bad_seed_is_refused(make: Maker, tmp_path: Path, seed: str, what: str) -> None:
    (tmp_path / "seed.json").write_text(seed)
    it = make(PYLON_SEED=str(tmp_path / "seed.json")).start(ready=False)
    assert it.process is not None
    assert it.process.wait(WAIT_S) == 78
    assert what in it.log().splitlines()[-1]


def test_in_memory_leaves_no_database(make: Maker) -> None:
    it = make(PYLON_IN_MEMORY="true").start()
    db_path = Path(it.status()["db_path"])
    assert db_path.is_file()
    assert it.end() == 0
    assert not db_path.parent.exists()
    assert not it.db_path.exists()


def test_systemd_is_told(make: Maker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "n"))
        notify.settimeout(20)
        it = make(NOTIFY_SOCKET=str(tmp_path / "n"), WATCHDOG_USEC="400000").start(ready=False)
        heard = [notify.recv(4_096).decode()]
        while "WATCHDOG=1" not in heard:
            heard.append(notify.recv(4_096).decode())
        assert heard.index("READY=1") < heard.index("WATCHDOG=1")
        ready_with = next(h for h in heard[heard.index("READY=1"):] if h.startswith("STATUS="))
        assert ready_with == "STATUS=http 1/1, ws 1/1, sse 1/1, shards 1/1, identity 1/1"
        assert it.end() == 0
        rest = []
        notify.setblocking(False)
        while True:
            try:
                rest.append(notify.recv(4_096).decode())
            except BlockingIOError:
                break
        assert "STOPPING=1" in rest
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in rest)


def test_sockets_of_systemd_survive_us(make: Maker, tmp_path: Path) -> None:
    it = make()
    with socket.create_server(("127.0.0.1", it.port)) as outer:
        code = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.set_inheritable(3, True); "
            "os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES='http');"
            "os.execv(sys.executable, [sys.executable, '-m', 'tests.support.stand_in_supervisor'])"
        )
        with (it.folder / "log").open("a") as out:
            it.process = subprocess.Popen(
                [sys.executable, "-c", code, str(outer.fileno())], text=True, cwd=it.folder,
                env=it.env, pass_fds=(outer.fileno(),), stdout=out, stderr=out,
            )
        wait_until("ready", lambda: it.status().get("ready"))
        assert it.status()["ports"]["http"] == it.port
        assert it.end() == 0
        with socket.create_connection(("127.0.0.1", it.port)):
            pass  # still listening: no connection is refused over a restart


def test_metrics_and_bad_requests(make: Maker) -> None:
    it = make().start()
    page = json.loads(it.control.ask("metrics", format="json")["body"])
    assert page["requests"] == {"total": 0, "ok": 0, "error": 0}
    assert it.control.ask("ping")["version"]
    with pytest.raises(InvalidData, match="Unknown command"):
        it.control.ask("nope")
    with pytest.raises(InvalidData, match="text, openmetrics or json"):
        it.control.ask("metrics", format="xml")
    assert it.end(signal.SIGINT) == 0


