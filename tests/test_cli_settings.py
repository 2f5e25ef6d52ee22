"""Where `pylonctl` takes settings from, and what `dev` watches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.cli.announce import dev_lines, start_body, urls
from pylon.cli.check_config import data_dir_problems, port_problems
from pylon.cli.dev import differences, look, watched_files
from pylon.cli.settings import dotenv_files, read_settings
from pylon.config import load
from pylon.errors import StartRefused
from pylon.manifest.load import load_manifest
from tests.support.server import PylonServer, free_base_port

TODO = Path(__file__).parent.parent / "examples" / "todo" / "pylon.manifest.json"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """outer/.env, outer/inner/.env and outer/inner/.env.local; the inner folder."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / ".env").write_text("PYLON_PORT=1000\nPYLON_SEED=outer.json\nOTHER=1\n")
    (inner / ".env").write_text("PYLON_PORT=2000\nPYLON_LOG_LEVEL=debug\n")
    (inner / ".env.local").write_text("export PYLON_LOG_LEVEL='error'\n")
    return inner


def test_flag_beats_environment_beats_local_beats_env_beats_outer(folders: Path) -> None:
    loaded = read_settings(
        dev=True, folder=folders,
        environ={"PYLON_BIND": "127.0.0.9", "PYLON_MANIFEST": "a.json"},
        flags={"PYLON_MANIFEST": "b.json", "PYLON_DB_PATH": None},
    )
    config = loaded.config
    assert (config.manifest, loaded.origin["PYLON_MANIFEST"]) == ("b.json", "command line")
    assert (config.bind, loaded.origin["PYLON_BIND"]) == ("127.0.0.9", "environment")
    assert config.log_level == "error"
    assert loaded.origin["PYLON_LOG_LEVEL"] == str(folders / ".env.local")
    assert (config.port, loaded.origin["PYLON_PORT"]) == (2000, str(folders / ".env"))
    assert (config.seed, loaded.origin["PYLON_SEED"]) == (
        "outer.json", str(folders.parent / ".env"),
    )
    assert loaded.origin["PYLON_DB_PATH"] == "default"
    assert (config.dev_mode, loaded.origin["PYLON_DEV_MODE"]) == (True, "pylonctl dev")
    assert loaded.origin["PYLON_LOG_FORMAT"] == "dev default"


def test_without_dev_no_env_file_is_read(folders: Path) -> None:
    loaded = read_settings(folder=folders, environ={})
    assert (loaded.config.port, loaded.config.dev_mode) == (4321, False)


def test_env_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StartRefused, match=r"\.env cannot be read"):
        read_settings(dev=True, folder=tmp_path, environ={})


def test_dev_watches_manifest_seed_env_and_python_files(tmp_path: Path) -> None:
    for name in (".env", "pylon.manifest.json", "seed.json", "app.py", "notes.txt"):
        (tmp_path / name).write_text("")
    for folder in ("fns", "node_modules", ".venv"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "code.py").write_text("")
    config = load({
        "PYLON_MANIFEST": str(tmp_path / "pylon.manifest.json"),
        "PYLON_SEED": str(tmp_path / "seed.json"),
    }).config
    found = {str(p.relative_to(tmp_path)) for p in watched_files(tmp_path, config)
             if p.is_relative_to(tmp_path)}
    assert found == {".env", "pylon.manifest.json", "seed.json", "app.py", "fns/code.py"}
    assert set(watched_files(tmp_path, None)) == set(dotenv_files(tmp_path))


def test_dev_sees_what_came_went_and_changed(tmp_path: Path) -> None:
    stays, goes, comes, changes = (tmp_path / name for name in ("a", "b", "c", "d"))
    for path in (stays, goes, changes):
        path.write_text("")
    before = look([stays, goes, comes, changes])
    goes.unlink()
    comes.write_text("")
    os.utime(changes, ns=(1, 1))
    assert differences(before, look([stays, goes, comes, changes])) == {goes, comes, changes}


def test_announcement_names_every_role_that_is_on() -> None:
    config = load({
        "PYLON_DEV_MODE": "1", "PYLON_PORT": "5000", "PYLON_SSE_WORKERS": "0",
        "PYLON_STATIC_DIR": str(TODO.parent / "public"),
    }).config
    manifest = load_manifest(TODO)
    assert urls(config) == {
        "http": "http://localhost:5000", "ws": "ws://localhost:5001",
        "shards": "ws://localhost:5003",
    }
    text = "\n".join(dev_lines(config, manifest))
    assert "curl http://localhost:5000/api/entities/Todo" in text
    assert "http://localhost:5000/app/" in text
    assert start_body(config, manifest)["code"] == "START_OK"


def test_check_config_lists_every_port_problem() -> None:
    base = free_base_port()
    environ = {"PYLON_BIND": "127.0.0.1", "PYLON_PORT": str(base)}
    assert port_problems(load(environ).config) == []
    same = port_problems(load({**environ, "PYLON_WS_PORT": str(base)}).config)
    assert same == [f"PYLON_WS_PORT is {base}, which the http port is too"]
    high = port_problems(load({**environ, "PYLON_PORT": "65535"}).config)
    assert [p for p in high if "would be 65536: set PYLON_WS_PORT" in p]


def test_check_config_sees_a_data_dir_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bad = load({"PYLON_DB_PATH": str(tmp_path / "file" / "app.db")}).config
    assert data_dir_problems(bad) == [
        f"PYLON_DB_PATH is {bad.db_path}: {tmp_path / 'file'} is not a folder"
    ]
    assert data_dir_problems(load({"PYLON_DB_PATH": str(tmp_path / "new" / "a.db")}).config) == []


def test_the_command_line_imports_neither_gevent_nor_a_worker() -> None:
    code = (
        "import sys; from pylon.cli.main import VERBS, cli\n"
        "assert all(cli.get_command(None, verb) for verb in VERBS)\n"
        "bad = {'gevent', 'zmq', 'supervisor', 'workers'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(bad)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("text", "words"),
    [("import nothing_of_that_name\n", "No module named"), ("def (\n", "SyntaxError"),
     ("raise SystemExit(3)\n", "its import ended with 3")],
)
def test_an_app_that_cannot_be_imported_is_refused_in_one_line(
    tmp_path: Path, text: str, words: str
) -> None:
    """It used to end its workers over and over, behind a server that looked as if it ran."""
    game = tmp_path / "game.py"
    game.write_text(text)
    server = PylonServer(
        tmp_path, json.loads(TODO.read_text()), {"PYLON_APP": str(game)}
    )
    for verb in ("start", "check-config"):
        done = server.ctl(verb)
        assert done.returncode == 78, done.stdout + done.stderr
        (line,) = done.stderr.splitlines()
        assert line.startswith("pylonctl: PYLON_APP") and words in line
    assert not server.db_path.exists()
