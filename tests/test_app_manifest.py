"""A server whose PYLON_APP declares the manifest: its start, its errors, its reload, its JSON."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pylon.app_manifest import declared_manifest, declares_manifest, read_python_manifest
from pylon.manifest.diagnostics import ManifestInvalid
from tests.support.cli import Ctl, decode_output
from tests.support.manifests import notes_app
from tests.support.server import PylonServer
from tests.support.wait import wait_until

APPS = Path(__file__).parent / "corpora" / "apps"
CHAT = (APPS / "chat.py").read_text()


def put_app(folder: Path, source: str = CHAT) -> Path:
    path = folder / "app.py"
    path.write_text(source)
    return path


def test_a_server_needs_no_manifest_file_and_reloads_its_app(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server(notes_app(), PYLON_DEV_MODE="true")
    server.manifest_path.unlink()
    app = put_app(server.folder)
    server.env["PYLON_APP"] = str(app)
    server.start()
    token, _ = server.guest()
    status, answer = server.request("POST", "/api/entities/Room", {"owner": "x", "name": "r"},
                                    token=token)[:2]
    assert status == 403
    file, _, line = answer["error"]["place"].rpartition(":")
    assert file == app.name
    assert 'insert="data.owner' in CHAT.splitlines()[int(line) - 1]
    app.write_text(CHAT + '\n\nclass Note(Entity):\n    text: str\n'
                   '    access = policy(allow="true")\n')
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    wait_until("the app is reloaded", lambda: server.request(
        "POST", "/api/entities/Note", {"text": "t"}, token=token)[0] == 201)


def test_a_bad_app_is_refused_with_its_place(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "pylon.manifest.json").unlink()
    put_app(tmp_path, CHAT.replace("data.owner == existing.owner", "data.ownr == existing.owner"))
    done = ctl("check-config", "--no-ports", PYLON_APP="app.py")
    assert done.returncode == 78
    line = 1 + CHAT[: CHAT.index("data.owner == existing.owner")].count("\n")
    assert f"app.py:{line}:22: error POLICY_EXPRESSION_INVALID" in done.stderr
    assert "did you mean owner?" in done.stderr


@pytest.mark.usefixtures("processes")
def test_a_missing_index_is_named_in_the_spelling_of_python(tmp_path: Path) -> None:
    path = put_app(tmp_path, CHAT.replace('index("user", "room", unique=True)', 'index("room")'))
    with pytest.raises(ManifestInvalid) as caught:
        read_python_manifest(str(path))
    assert 'add by_user_room = index("user", "room") to Member' in (
        caught.value.diagnostics[0].message)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(("source", "line", "column", "text"), [
    ("from pylon import app\nimport json\napp('x'\n", 3, 4, "'(' was never closed"),
    ("from pylon import app, polcy\n", 1, 1, "did you mean policy?"),
    ("from pylon import app\napp('x')\nraise SystemError('no')\n", 3, 1, "SystemError: no"),
    ("from pylon import Entity, Id, app\napp('x')\nclass A(Entity):\n    b: Id[Bb]\n", 4, 11,
     "name 'Bb' is not defined"),
    ("from pylon import app\nprint('noise')\n", None, None, "no app is declared"),
])
def test_a_failed_import_names_its_place(
    source: str, line: int | None, column: int | None, text: str, tmp_path: Path
) -> None:
    path = put_app(tmp_path, source)
    with pytest.raises(ManifestInvalid) as caught:
        read_python_manifest(str(path))
    (found,) = caught.value.diagnostics
    assert (found.file, found.line, found.column) == (str(path), line, column)
    assert text in found.render()


@pytest.mark.usefixtures("processes")
def test_the_child_leaves_this_process_without_the_app(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text(
        "from pylon import Entity\n\nclass Word(Entity):\n    w: str\n")
    path = put_app(tmp_path, "import sys\nimport words\nfrom pylon import app\napp('x')\n"
                   "print('noise')\nsys.modules['left'] = sys\n")
    first = declared_manifest(str(path))
    assert [entity["name"] for entity in first.document["entities"]] == ["Word"]
    assert set(first.files) == {str(path), str(tmp_path / "words.py")}
    assert declared_manifest(str(path)) is first
    (tmp_path / "words.py").write_text(
        "from pylon import Entity\n\nclass Words(Entity):\n    w: str\n")
    assert [e["name"] for e in declared_manifest(str(path)).document["entities"]] == ["Words"]
    assert "left" not in sys.modules and "words" not in sys.modules


def test_a_file_declares_a_manifest_by_its_import_of_app(tmp_path: Path) -> None:
    assert declares_manifest(str(APPS / "chat.py"))
    assert not declares_manifest(str(put_app(tmp_path, "from pylon import SimState, shard\n")))
    assert not declares_manifest(None)
    assert not declares_manifest(str(tmp_path / "missing.py"))


def test_build_writes_what_the_server_uses_and_check_compares(ctl: Ctl, tmp_path: Path) -> None:
    target = tmp_path / "pylon.manifest.json"
    target.unlink()
    put_app(tmp_path)
    assert ctl("manifest", "build", "--check", PYLON_APP="app.py").returncode == 1
    assert decode_output(ctl("manifest", "build", "--json", PYLON_APP="app.py"))["written"]
    assert json.loads(target.read_text())["name"] == "chat"
    assert ctl("manifest", "build", "--check", PYLON_APP="app.py").returncode == 0
    put_app(tmp_path, CHAT.replace("private: bool = False", "private: bool = True"))
    stale = ctl("manifest", "build", "--check", PYLON_APP="app.py")
    assert stale.returncode == 1 and '+          "default": true' in stale.stderr
    warned = ctl("check-config", "--no-ports", PYLON_APP="app.py")
    assert warned.returncode == 0 and "differs from what app.py declares" in warned.stderr
    python = ctl("manifest", "to-python")
    assert python.returncode == 0
    put_app(tmp_path, python.stdout)
    assert ctl("manifest", "build", "--check", PYLON_APP="app.py").returncode == 0
    refused = ctl("manifest", "build")
    assert refused.returncode == 78 and "PYLON_APP is not set" in refused.stderr


@pytest.mark.usefixtures("processes")
def test_mypy_finds_exactly_the_wrong_lines() -> None:
    """Pyright finds the same; tests/support/type_checkers.py runs it where Node is."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
         "--no-error-summary", "--hide-error-context", "everything.py", "rows.py",
         "wrong_rows.py"],
        cwd=APPS, env={"MYPYPATH": str(APPS.parent.parent.parent), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, timeout=280, check=False,
    )
    lines = (APPS / "wrong_rows.py").read_text().splitlines()
    marked = {f"wrong_rows.py:{n}" for n, line in enumerate(lines, 1) if "# error" in line}
    found = {line.partition(": error:")[0] for line in done.stdout.splitlines() if "error" in line}
    assert found == marked, done.stdout + done.stderr
