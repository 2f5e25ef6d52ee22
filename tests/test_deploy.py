"""The shipped unit files, the nginx configuration and the example, each judged by its own tool."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from pylon.config import load, parse_dotenv, refuse_unsafe
from pylon.manifest_loader import load_manifest
from pylon.settings import SETTINGS
from pylon.values import EntityCodec
from tests.support.nginx import moved
from tests.support.ports import reserve_base_port
from tests.support.wait import WAIT_S, wait_until

ROOT = Path(__file__).parent.parent
FILES = ROOT / "pylon" / "install" / "files"
UNITS = sorted(
    path for path in FILES.iterdir()
    if path.suffix in (".service", ".socket", ".timer")
)
Program = Callable[[str, str], str]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_units_pass_systemd_verify(program: Program, tmp_path: Path) -> None:
    analyze = program("systemd-analyze", "systemd")
    for unit in UNITS:  # verify wants the program to be there; it is installed elsewhere here
        text = unit.read_text().replace("/opt/pylon/bin/pylonctl", shutil.which("true") or "")
        (tmp_path / unit.name).write_text(text)
    done = run(analyze, "verify", *(str(tmp_path / unit.name) for unit in UNITS))
    said = [line for line in (done.stdout + done.stderr).splitlines() if "pylon" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize(
    "name", ["pylon.service", "pylon-backup.service", "pylon-drill.service"]
)
def test_units_are_hardened(program: Program, name: str) -> None:
    analyze = program("systemd-analyze", "systemd")
    done = run(
        analyze, "security", "--offline=true", "--threshold=20", str(FILES / name)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (level,) = re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(level) <= 1.6


def test_the_four_sockets_have_the_names_and_ports_that_the_supervisor_expects() -> None:
    found = {}
    for unit in UNITS:
        if unit.suffix == ".socket":
            text = unit.read_text()
            (name,) = re.findall(r"^FileDescriptorName=(.*)$", text, re.MULTILINE)
            (port,) = re.findall(r"^ListenStream=127\.0\.0\.1:(\d+)$", text, re.MULTILINE)
            found[name] = int(port)
    config = load({}).config
    assert found == {role: config.port_of(role) for role in ("http", "ws", "sse", "shards")}


def test_the_unit_gives_the_drain_enough_time_and_only_known_settings() -> None:
    text = (FILES / "pylon.service").read_text()
    stop_s = float(re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)[0])
    config = load({}).config
    assert stop_s > config.drain_delay_s + config.drain_s + 30
    known = {setting.env for setting in SETTINGS}
    for unit in UNITS:
        assert set(re.findall(r"^Environment=(PYLON_\w+)", unit.read_text(), re.MULTILINE)) <= known


def test_shipped_settings_are_sound() -> None:
    text = (FILES / "pylon.env").read_text()
    tokens = {"PYLON_ADMIN_TOKEN": "a" * 40, "PYLON_METRICS_TOKEN": "b" * 40}
    env = {name: tokens.get(name, value) for name, value in parse_dotenv(text).items()}
    assert set(env) <= {setting.env for setting in SETTINGS}
    loaded = load({}, env)
    assert (loaded.warnings, loaded.refusals) == ((), ())
    refuse_unsafe(loaded.config)


def test_nginx_accepts_the_configuration(program: Program, tmp_path: Path) -> None:
    nginx = program("nginx", "nginx-light")
    shipped = tmp_path / "pylon.conf"
    shipped.write_text(moved(reserve_base_port()))
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"pid {tmp_path}/nginx.pid; error_log stderr; events {{ worker_connections 64; }}\n"
        f"http {{ access_log off; include {shipped}; }}\n"
    )
    done = run(nginx, "-t", "-c", str(conf), "-p", str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("processes")
def test_nginx_logs_no_query_string_of_a_socket(program: Program, tmp_path: Path) -> None:
    """Nobody is there behind nginx, so that it has errors to log too."""
    nginx = program("nginx", "nginx-light")
    port, nobody = reserve_base_port(), reserve_base_port()
    shipped = tmp_path / "pylon.conf"
    shipped.write_text(moved(port, nobody, logs=tmp_path))
    conf = tmp_path / "nginx.conf"
    conf.write_text(
        f"pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; daemon off;\n"
        f"master_process off; events {{ worker_connections 64; }}\n"
        f"http {{ include {shipped}; }}\n"
    )
    process = subprocess.Popen([nginx, "-c", str(conf), "-p", str(tmp_path)])
    upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
    paths = ["/ws", "/", "/events", "/shards", "/api/sync/ws", "/api/shards/ws",
             "/api/shards/counter:1/connect"]
    try:
        wait_until("nginx listens", lambda: is_listening(port))
        for path in paths:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
            connection.request("GET", f"{path}?token=a-secret&seat=a-secret", headers={
                **upgrade, "Referer": "https://app.example.com/page?token=a-secret#a-secret",
            })
            assert connection.getresponse().status == 502
            connection.close()
        access_log = tmp_path / "access.log"
        wait_until("all are logged", lambda: access_log.read_text().count("\n") == len(paths))
    finally:
        process.terminate()
        process.wait(WAIT_S)
    for path, line in zip(paths, access_log.read_text().splitlines(), strict=True):
        assert f'"GET {path} HTTP/1.1" 502 ' in line
        assert '"https://app.example.com/page"' in line
    for log in (access_log, tmp_path / "error.log"):
        assert "a-secret" not in log.read_text()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_the_example_seed_fits_its_manifest_and_its_env_file_is_made_of_settings() -> None:
    folder = ROOT / "examples" / "todo"
    manifest = load_manifest(folder / "pylon.manifest.json")
    seed = orjson.loads((folder / "seed.json").read_bytes())
    assert set(seed) == {"User", "Todo"}
    for entity, bodies in seed.items():
        codec = EntityCodec(manifest.by_name[entity])
        for number, body in enumerate(bodies):
            row_id = codec.client_id(body) or f"{number:040x}"
            assert codec.insert(body, row_id).row["id"] == row_id
    env = parse_dotenv((folder / ".env.example").read_text())
    assert set(env) <= {setting.env for setting in SETTINGS}
    assert (folder / env["PYLON_SEED"]).is_file()
    assert (folder / env["PYLON_STATIC_DIR"] / "index.html").is_file()


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = (ROOT / "examples" / "todo" / "public" / "index.html").read_text()
    assert re.findall(r"(?:src|href)\s*=|https?://", page) == []
