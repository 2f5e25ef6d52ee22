"""`pylonctl init`: each starter is a valid app whose own tests pass on a real server."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.cli.init import STARTERS
from tests.support.cli import Ctl

ROOT = Path(__file__).parent.parent
PAGE_TEST = '''
import http.client

from pylon.testing import PylonServer


def test_the_page_and_its_client_are_served(pylon_server: PylonServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", pylon_server.port, timeout=30)
    for path, words in (("/app/", b"<title>demo</title>"), ("/client/pylon.js", b"export")):
        connection.request("GET", path)
        response = connection.getresponse()
        assert (response.status, words in response.read()) == (200, True), path
'''


@pytest.mark.parametrize("template", STARTERS)
def test_a_new_app_passes_its_own_tests(template: str, ctl: Ctl, tmp_path: Path) -> None:
    made = ctl("init", "demo", "--template", template)
    assert made.returncode == 0, made.stderr
    folder = tmp_path / "demo"
    (folder / "tests" / "test_page.py").write_text(PAGE_TEST)
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert "__NAME__" not in "".join(
        path.read_text() for path in folder.rglob("*") if path.is_file())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", "."],
        cwd=folder, capture_output=True, text=True, timeout=200, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_commands_of_the_documentation_run_in_a_new_app(ctl: Ctl, tmp_path: Path) -> None:
    """Those of docs/start.md and docs/codegen.md, but for the server and its tests."""
    pages = "".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("start", "codegen"))
    blocks = re.findall(r"```sh\n(.*?)```", pages, re.DOTALL)
    lines = [line.partition("#")[0].split() for block in blocks for line in block.splitlines()]
    commands = {tuple(line[1:]) for line in lines if line and line[0] == "pylonctl"}
    commands -= {("dev",), ("init", "demo", "--template", "chat")}
    assert len(commands) == 6
    assert ctl("init", "demo", "--template", "chat").returncode == 0
    for command in sorted(commands):
        done = ctl(*command, PYLON_APP="demo/app.py")
        assert done.returncode == 0, (command, done.stderr)
        assert (tmp_path / command[-1]).stat().st_size > 500


def test_init_replaces_no_file(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "app.py").write_text("mine")
    done = ctl("init", "demo")
    assert done.returncode == 78 and "demo/app.py is there already" in done.stderr
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["app.py"]
    assert ctl("init", "1x").returncode == 78
