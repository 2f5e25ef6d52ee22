"""docs/operations/incidents.md: its commands run on a real server, its names exist."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pylon.data_dir_lock import log_file_of
from pylon.errors import PylonError
from pylon.metrics.registries import SUPERVISOR, WORKER
from pylon.settings import SETTINGS
from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "operations" / "incidents.md").read_text()
COMMANDS = sorted({
    line for block in re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
})
OURS = [command for command in COMMANDS if command.startswith("pylonctl ")]
METRICS = [metric for registry in (WORKER, SUPERVISOR) for metric in registry.collect()]
# Of a machine with systemd: the tests of the units run them there.
OTHERS = {"systemctl status pylon-backup.timer pylon-backup.service"}


@pytest.fixture(scope="module")
def server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    """A server that was started with --detach, so that there is a log beside its database."""
    made = PylonServer(tmp_path_factory.mktemp("incidents"), notes_app(), {
        "PYLON_METRICS_TOKEN": "metrics-token-0123456789-0123456789-0123"})
    with closing(made):
        assert made.ctl("start", "--detach").returncode == 0
        for n in range(3):
            assert made.request(
                "POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=ADMIN_TOKEN)[0] == 201
        pid = made.status()["pid"]
        yield made
        os.kill(pid, signal.SIGTERM)  # the last test may start no process, so no pylonctl either
        wait_until("it has ended", lambda: not Path(f"/proc/{pid}").exists())


def test_page_has_commands_for_nearly_every_heading() -> None:
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    assert len(sections) >= 25
    for section in sections:
        assert "**Remedy**" in section and "```sh" in section, section.splitlines()[0]
    assert set(COMMANDS) - set(OURS) == OTHERS


@pytest.mark.parametrize("command", OURS)
def test_command_runs(server: PylonServer, command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pylon.cli.main", *shlex.split(command)[1:]],
        env=server.full_env(), cwd=server.folder, text=True, capture_output=True, timeout=60,
        check=False,
    )
    allowed = {0, 1} if command.startswith("pylonctl doctor") else {0}  # 1: no backup yet
    assert done.returncode in allowed, done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    if "--grep" in command and done.stdout.startswith("no such metric"):
        word = shlex.split(command)[-1]  # of a metric that has not counted anything yet
        assert any(word in f"{metric.name} {metric.documentation}" for metric in METRICS), word


def test_logs_are_those_of_the_server(server: PylonServer) -> None:
    assert log_file_of(server.db_path).is_file()
    assert "ready" in server.ctl("logs", "--event", "ready").stdout


def test_named_metrics_settings_and_codes_exist() -> None:
    known = {metric.name for metric in METRICS}
    known |= {f"{name}_total" for name in known}
    assert set(re.findall(r"\bpylon_[a-z_]+[a-z]", PAGE)) - {"pylon_http_errors"} <= known
    settings = {setting.env for setting in SETTINGS}
    assert set(re.findall(r"\bPYLON_[A-Z_]+", PAGE)) <= settings
    codes = {cls.code for cls in PylonError.classes()}
    words = set(re.findall(r"(?:`|explain )([A-Z]+(?:_[A-Z]+)+|INTERNAL)\b", PAGE))
    assert {word for word in words if not word.startswith("PYLON_")} <= codes
