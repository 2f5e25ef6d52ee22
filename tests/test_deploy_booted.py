"""docs/operations/install.md, command by command, on a Debian 12 booted for it (systemd 252).

One machine for all tests, in order: a machine is installed once, as an operator does it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import IN_CI
from tests.support.debian import Machine, UnavailableError, install
from tests.support.measured import page_values
from tests.support.wait import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parent.parent
SOCKETS = "pylon.socket pylon-ws.socket pylon-sse.socket pylon-shards.socket"
# GET: status and body. A connection is tried again for a while, an answer is not.
GET = """
import sys, urllib.request, urllib.error
headers = {"Accept": "text/plain"}
if len(sys.argv) > 2:
    headers["Authorization"] = f"Bearer {sys.argv[2]}"
if ":80/" in sys.argv[1]:
    headers["Host"] = "api.example.com"
where = sys.argv[1] if sys.argv[1].startswith(":") else ":4321" + sys.argv[1]
request = urllib.request.Request("http://127.0.0.1" + where, headers=headers)
try:
    answer = urllib.request.urlopen(request, timeout=60)
except urllib.error.HTTPError as error:
    answer = error
print(answer.status, answer.read().decode())
"""


INSTALL = "operations/install.md"
BACKUP = "deploy.md"


def commands(heading: str, page_name: str = INSTALL) -> list[str]:
    """The shell blocks below a heading of a page, in order."""
    page = (ROOT / "docs" / page_name).read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def machine(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine on which the page's section "Install" was carried out."""
    try:
        install()
    except UnavailableError as ex:
        if IN_CI and os.geteuid() == 0:
            pytest.fail(f"in CI nothing installable is skipped: {ex}")
        pytest.skip(str(ex))
    with Machine(tmp_path_factory.mktemp("machine")) as made:
        source = made.root / "srv" / "pylon"
        source.mkdir()
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
            check=True, capture_output=True,
        )
        packed = subprocess.run(
            ["tar", "--null", "--files-from=-", "-c"], cwd=ROOT, input=files.stdout, check=True,
            capture_output=True,
        )
        subprocess.run(["tar", "-x"], cwd=source, input=packed.stdout, check=True)
        packages, dry_run, start = commands("Install")
        made.prepare(f"cd /srv/pylon\n{packages}")  # pip needs the network of the machine outside
        made.boot()
        (made.root / "root" / "get.py").write_text(GET)
        state = "ls /etc /etc/systemd/system /usr/local/bin; getent passwd"
        before = made.ask(state)
        said = made.ask(f"cd /srv/pylon\n{dry_run}")
        assert "wrote      /etc/systemd/system/pylon.service" in said
        assert made.ask(state) == before
        made.ask(f"cd /srv/pylon\n{start}")
        yield made


def get(machine: Machine, path: str, token_of: str = "") -> str:
    token = f"$(sed -n s/^{token_of}=//p /etc/pylon/pylon.env)" if token_of else ""
    return machine.ask(f"python3 get.py {path} {token}")


def show(machine: Machine, unit: str, name: str) -> str:
    return machine.ask(f"systemctl show --value -p {name} {unit}")


def starts(machine: Machine) -> int:
    """How often systemd has begun to start the service."""
    return int(machine.ask(
        "journalctl -q -o cat -u pylon.service | grep -c '^Starting pylon.service' || true"
    ))


def all_listen(machine: Machine) -> bool:
    return {show(machine, unit, "ActiveState") for unit in SOCKETS.split()} == {"active"}


def test_install_commands_serve_an_app(machine: Machine) -> None:
    assert machine.ask("systemctl is-active pylon.service") == "active"
    assert machine.ask("systemctl is-enabled pylon.service pylon-backup.timer "
                       "pylon-drill.timer").split() == ["enabled"] * 3
    assert get(machine, "/readyz").startswith("200 ")
    assert get(machine, "/metrics", "PYLON_METRICS_TOKEN").startswith("200 ")
    assert '"count":' in get(machine, "/api/entities/Todo")
    status = machine.ask("pylonctl status")
    assert "http 4321" in status
    assert machine.ask("stat -c '%U %a' /var/lib/pylon /var/lib/pylon/pylon.db /run/pylon") == (
        "pylon 700\npylon 600\npylon 700")
    assert machine.ask("pylonctl check-config --no-ports") == "the configuration is fine"
    origin = machine.ask("pylonctl config | grep ^PYLON_DB_PATH=")
    assert origin.split() == ["PYLON_DB_PATH=/var/lib/pylon/pylon.db", "#", "/etc/pylon/pylon.env"]
    assert machine.ask("stat -c '%U:%G %a' /etc/pylon/pylon.env") == "root:pylon 640"
    stranger = machine.run("setpriv --reuid=65534 --clear-groups pylonctl status")
    assert (stranger.returncode, stranger.stderr.strip()) == (
        78, "pylonctl: /etc/pylon/pylon.env cannot be read by this user (sudo pylonctl …, or "
        "PYLON_ENV_FILE= to read no file)")


def test_second_installation_changes_nothing(machine: Machine) -> None:
    pid = show(machine, "pylon.service", "MainPID")
    said = machine.ask(f"cd /srv/pylon\n{commands('Install')[2]}")
    done = {line.split()[0] for line in said.splitlines()}
    assert done == {"unchanged", "loaded", "started"}, said
    assert show(machine, "pylon.service", "MainPID") == pid


def test_nginx_commands_put_it_in_front(machine: Machine) -> None:
    machine.ask("systemctl start nginx")
    (block,) = commands("nginx")
    said = machine.ask(block)
    assert "wrote      /etc/nginx/conf.d/pylon.conf" in said
    assert "checked    configuration of nginx" in said
    assert "reloaded   nginx" in said
    # systemd's reload is over before nginx's new workers accept.
    wait_until(
        "nginx passes requests on",
        lambda: machine.run("python3 get.py :80/readyz").stdout.startswith("200 "),
    )


def test_backup_unit_makes_a_bundle_and_keeps_fourteen(machine: Machine) -> None:
    machine.ask("for n in $(seq 10 30); do install -d -o pylon -g pylon -m 0700 "
                "/var/lib/pylon-backup/202001${n}T000000Z; done")
    machine.ask("systemctl start pylon-backup.service")
    assert show(machine, "pylon-backup.service", "Result") == "success"
    names = machine.ask("ls -1 /var/lib/pylon-backup").split()
    assert len(names) == 14
    newest = f"/var/lib/pylon-backup/{names[-1]}"
    assert machine.ask(f"stat -c '%U %a' {newest} {newest}/pylon.db") == "pylon 700\npylon 600"
    assert "is sound" in machine.ask(f"pylonctl backup verify {newest}")
    page = get(machine, "/metrics", "PYLON_METRICS_TOKEN").removeprefix("200 ")
    (at_s,) = page_values(page, "pylon_backup_last_success_timestamp_seconds")
    assert abs(at_s - time.time()) < 3_600


@pytest.mark.parametrize("target", ["/tmp/x", "/root/deep/er", "/mnt/a"])
def test_backup_by_root_is_where_root_said(machine: Machine, target: str) -> None:
    machine.ask(f"pylonctl backup {target}")
    assert machine.ask(f"stat -c '%U %a' {target}") == "root 700"
    assert "is sound" in machine.ask(f"pylonctl backup verify {target}")


def test_backup_and_restore_commands(machine: Machine) -> None:
    by_hand, restore, _encrypted = commands("Backup and restore", BACKUP)
    assert "is sound" in machine.ask(by_hand)
    machine.ask("echo >> /etc/pylon/pylon.manifest.json")  # it comes back as well
    machine.ask(restore)
    assert get(machine, "/readyz").startswith("200 ")
    assert machine.ask("stat -c '%U %a' /var/lib/pylon/pylon.db") == "pylon 600"
    assert machine.ask("stat -c '%U %a' /var/lib/pylon/secret.key") == "pylon 600"
    assert machine.ask("stat -c '%U %a' /etc/pylon/pylon.manifest.json") == "root 644"
    assert machine.ask("ls /var/lib/pylon /etc/pylon | grep -c replaced-") == "2"
    machine.ask("systemctl start pylon-backup.service")


def test_drill_unit_leaves_a_report(machine: Machine) -> None:
    machine.ask("systemctl start pylon-drill.service")
    assert show(machine, "pylon-drill.service", "Result") == "success"
    assert machine.ask("grep -l passed /var/lib/pylon/drills/drill-*.txt | wc -l") == "1"


def test_restart_refuses_no_connection(machine: Machine) -> None:
    machine.ask("systemctl restart --no-block pylon.service")
    for _ in range(5):
        assert get(machine, "/readyz").startswith(("200 ", "503 "))
    wait_until("active", lambda: show(machine, "pylon.service", "ActiveState") == "active", 60)


# Writes rows, each over a new connection, until stdin closes; prints how many the server took, and
# each failure. A connection waits at systemd's socket while no server is there.
WRITES = """
import json, sys, threading, urllib.request
token, taken, failed, stop = sys.argv[1], [0], [], threading.Event()
def write():
    while not stop.is_set():
        try:
            urllib.request.urlopen(urllib.request.Request(
                "http://127.0.0.1:4321/api/entities/User",
                json.dumps({"displayName": "load", "email": f"{taken[0]}@example.com"}).encode(),
                {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}),
                timeout=60).read()
            taken[0] += 1
        except Exception as error:
            failed.append(f"{error!r} {getattr(error, 'read', str)()!r}")
thread = threading.Thread(target=write)
thread.start()
print("writing", flush=True)
sys.stdin.read()
stop.set()
thread.join()
print(json.dumps({"taken": taken[0], "failed": failed}))
"""


def test_restart_under_load_refuses_no_connection_and_loses_no_write(machine: Machine) -> None:
    (machine.root / "root" / "writes.py").write_text(WRITES)
    token = machine.ask("sed -n s/^PYLON_ADMIN_TOKEN=//p /etc/pylon/pylon.env")
    rows = "/api/entities/User?count=true&limit=1"
    before = rows_total(machine, rows)
    with subprocess.Popen(
        ["nsenter", f"--target={machine.init_pid}", "--net", "python3",
         str(machine.root / "root" / "writes.py"), token],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as load:
        assert load.stdout is not None and load.stdout.readline() == "writing\n"
        wait_until("rows arrive", lambda: rows_total(machine, rows) > before + 5, 60)
        for _ in range(2):
            pid = show(machine, "pylon.service", "MainPID")
            machine.ask("systemctl restart pylon.service")
            assert show(machine, "pylon.service", "MainPID") != pid
        middle = rows_total(machine, rows)
        wait_until("rows arrive again", lambda: rows_total(machine, rows) > middle, 60)
        said, _ = load.communicate(timeout=120)
    outcome = json.loads(said)
    assert outcome["failed"] == []
    assert rows_total(machine, rows) - before == outcome["taken"]


def rows_total(machine: Machine, path: str) -> int:
    body = get(machine, f"'{path}'", "PYLON_ADMIN_TOKEN").removeprefix("200 ")
    total: int = json.loads(body)["total"]
    return total


def test_watchdog_restarts_a_server_that_hangs(machine: Machine) -> None:
    """With shorter times than the unit's, which are 30 s and 75 s."""
    folder = "/etc/systemd/system/pylon.service.d"
    machine.ask(
        f"mkdir -p {folder}; printf '[Service]\\nWatchdogSec=4\\nTimeoutAbortSec=1\\n' "
        f"> {folder}/test.conf; systemctl daemon-reload; systemctl restart pylon.service"
    )
    try:
        pid = show(machine, "pylon.service", "MainPID")
        machine.ask(f"kill -STOP {pid}")
        wait_until("another one is ready", lambda: (
            show(machine, "pylon.service", "MainPID") not in (pid, "0")
            and show(machine, "pylon.service", "ActiveState") == "active"), 90)
        assert "Watchdog timeout" in machine.ask("journalctl -q -o cat -u pylon.service -n 200")
        assert get(machine, "/readyz").startswith("200 ")
    finally:
        machine.ask(f"rm -r {folder}; systemctl daemon-reload; systemctl restart pylon.service")


def test_timer_makes_a_backup(machine: Machine) -> None:
    """At once, and not at night."""
    folder = "/etc/systemd/system/pylon-backup.timer.d"
    names = "ls -1 /var/lib/pylon-backup"
    before = machine.ask(names)
    machine.ask(
        f"mkdir -p {folder}; printf '[Timer]\\nOnCalendar=\\nOnActiveSec=1\\n"
        f"RandomizedDelaySec=0\\nAccuracySec=1\\n' > {folder}/test.conf; "
        "systemctl daemon-reload; systemctl restart pylon-backup.timer"
    )
    try:
        wait_until("a bundle is there", lambda: machine.ask(names) != before, 90)
        wait_until("the unit has ended", lambda: (
            show(machine, "pylon-backup.service", "ActiveState") == "inactive"), 90)
        assert show(machine, "pylon-backup.service", "Result") == "success"
    finally:
        machine.ask(f"rm -r {folder}; systemctl daemon-reload; systemctl restart "
                    "pylon-backup.timer")


def test_killed_server_comes_back(machine: Machine) -> None:
    pid = show(machine, "pylon.service", "MainPID")
    machine.ask(f"kill -9 {pid}")
    wait_until("another one is ready", lambda: (
        show(machine, "pylon.service", "MainPID") not in (pid, "0")
        and show(machine, "pylon.service", "ActiveState") == "active"), 60)
    assert get(machine, "/readyz").startswith("200 ")


def test_refused_configuration_is_not_tried_again_and_sockets_stay(machine: Machine) -> None:
    machine.ask("echo PYLON_DURABILITY=perhaps >> /etc/pylon/pylon.env")
    before = starts(machine)
    assert machine.run("systemctl restart pylon.service").returncode != 0
    wait_until("failed", lambda: show(machine, "pylon.service", "ActiveState") == "failed")
    assert show(machine, "pylon.service", "ExecMainStatus") == "78"
    assert "PYLON_DURABILITY" in machine.ask("journalctl -q -o cat -u pylon.service -n 20")
    assert starts(machine) == before + 1
    assert all_listen(machine)

    # Connections that wait: each ends with another refused start, and none takes the sockets down.
    waiting = subprocess.Popen(
        ["nsenter", f"--target={machine.init_pid}", "--net", "python3", "-c",
         "import socket, time\n"
         "held = [socket.create_connection(('127.0.0.1', 4321)) for _ in range(40)]\n"
         "held[0].sendall(b'GET /readyz HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n')\n"
         "held[0].settimeout(120); print(held[0].recv(100)[:12].decode())"],
        stdout=subprocess.PIPE, text=True,
    )
    began_s = time.monotonic()
    wait_until("it was tried four times", lambda: starts(machine) >= before + 5, 60)
    tries, took_s = starts(machine) - before - 1, time.monotonic() - began_s
    assert tries <= took_s / 3 + 2, "three seconds between two attempts"
    assert all_listen(machine)

    # Mended: it starts at once, without reset-failed, and those that waited are answered.
    machine.ask("sed -i /PYLON_DURABILITY/d /etc/pylon/pylon.env; systemctl restart pylon.service")
    assert get(machine, "/readyz").startswith("200 ")
    said, _ = waiting.communicate(timeout=60)
    assert said.startswith("HTTP/1.1 ")


def test_stop_drains_and_a_connection_starts_a_stopped_server(machine: Machine) -> None:
    machine.ask("systemctl stop pylon.service")
    assert show(machine, "pylon.service", "Result") == "success"
    assert show(machine, "pylon.service", "ExecMainStatus") == "0"
    assert get(machine, "/readyz").startswith(("200 ", "503 "))  # it was started by the request
    wait_until("active", lambda: show(machine, "pylon.service", "ActiveState") == "active", 60)
    restart, stop, start = commands("Stopping, updating")[0].splitlines()
    machine.ask(restart)
    machine.ask(stop)
    assert machine.run("python3 get.py /readyz").returncode != 0
    assert show(machine, "pylon.service", "ActiveState") == "inactive"
    assert show(machine, "pylon.service", "ExecMainStatus") == "0"
    machine.ask(start)
    assert get(machine, "/readyz").startswith("200 ")


def test_pylonctl_backs_up_a_stopped_server(machine: Machine) -> None:
    machine.ask(f"systemctl stop {SOCKETS} pylon.service; pylonctl backup /mnt/stopped")
    machine.ask("systemctl start pylon-backup.service")
    machine.ask(f"systemctl start {SOCKETS} pylon.service")
    assert get(machine, "/readyz").startswith("200 ")


def test_uninstall_keeps_data_and_what_was_edited_and_then_deletes_them(machine: Machine) -> None:
    machine.ask("echo '# ours' >> /etc/systemd/system/pylon-backup.timer")
    dry_run, remove, delete = commands("Uninstall")
    assert "removed    /etc/systemd/system/pylon.service" in machine.ask(dry_run)
    assert machine.ask("systemctl is-active pylon.service") == "active"
    said = machine.ask(remove)
    assert "kept       /etc/systemd/system/pylon-backup.timer (it was edited)" in said
    assert machine.ask("ls /etc/systemd/system | grep pylon") == "pylon-backup.timer"
    assert machine.run("python3 get.py /readyz").returncode != 0
    assert machine.ask("ls /etc/nginx/conf.d") == ""
    assert machine.ask("stat -c %U /var/lib/pylon/pylon.db /etc/pylon/pylon.env") == "pylon\nroot"
    assert machine.run("test -e /usr/local/bin/pylonctl").returncode == 1
    # Installed again, it is the same server; then it goes with its data.
    machine.ask("rm /etc/systemd/system/pylon-backup.timer")
    machine.ask(f"cd /srv/pylon\n{commands('Install')[2]}")
    assert get(machine, "/readyz").startswith("200 ")
    machine.ask(delete)
    assert machine.run("ls /var/lib/pylon /var/lib/pylon-backup /etc/pylon/pylon.env").stdout == ""
    assert machine.run("getent passwd pylon").returncode == 2
