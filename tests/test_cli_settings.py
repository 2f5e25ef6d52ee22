"""Where `pylonctl` takes settings from, and what `dev` watches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from pylon.cli.announce import dev_lines, start_body, urls
from pylon.cli.check_config import data_dir_problems, port_problems
from pylon.cli.dev import differences, modification_times, watched_files
from pylon.cli.main import main
from pylon.cli.settings import dotenv_files, read_settings
from pylon.config import load
from pylon.errors import StartRefused
from pylon.manifest_loader import load_manifest
from tests.support.manifests import field
from tests.support.ports import reserve_base_port
from tests.support.server import PylonServer

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
    before = modification_times([stays, goes, comes, changes])
    goes.unlink()
    comes.write_text("")
    os.utime(changes, ns=(1, 1))
    after = modification_times([stays, goes, comes, changes])
    assert differences(before, after) == {goes, comes, changes}


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
    base = reserve_base_port()
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


def refusals(server: PylonServer, *verbs: str) -> list[list[str]]:
    """The lines that each verb ends with, warnings left out; the exit code is 78."""
    found = []
    for verb in verbs:
        done = server.ctl(verb)
        assert done.returncode == 78, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        found.append([x for x in done.stderr.splitlines() if "warning" not in x])
    return found


def app(**more: Any) -> dict[str, Any]:
    entity = {"name": "A", "fields": [field("s", "string")], "indexes": []}
    return {"manifest_version": 1, "name": "a", "version": "1", "routes": [],
            "entities": [entity | more]}


@pytest.mark.usefixtures("processes")
def test_check_config_finds_a_schema_that_cannot_be_reached(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, app(fields=[field("s", "string"), field("n", "int", True)]))
    server.db_path.parent.mkdir()
    conn = apsw.Connection(str(server.db_path))
    conn.execute("CREATE TABLE A (id TEXT PRIMARY KEY NOT NULL, s TEXT NOT NULL, n TEXT)")
    conn.execute("CREATE VIEW B AS SELECT 1")
    conn.close()
    started, checked = refusals(server, "start", "check-config")
    assert started == checked and "A.n: the type changes from TEXT to INTEGER" in checked[0]

    manifest = app()
    manifest["entities"].append({"name": "B", "fields": [], "indexes": []})
    server.manifest_path.write_text(json.dumps(manifest))
    started, checked = refusals(server, "start", "check-config")
    assert started == checked == ["pylonctl: create_entity B: view \"B\" already exists"]

    server.db_path.write_bytes(b"no database" * 100)
    started, checked = refusals(server, "start", "check-config")
    assert "not a database" in checked[0] and "not a database" in started[0]


@pytest.mark.usefixtures("processes")
def test_check_config_finds_everything_at_once(tmp_path: Path) -> None:
    many = app(fields=[field(f"f{n}", "int", True) for n in range(2_001)])
    (tmp_path / "seed.json").write_text('{"A": [{"s": 1}]}')
    server = PylonServer(tmp_path, many, {
        "PYLON_COOKIE_NAME": "a b", "PYLON_CSRF_ORIGINS": "*", "PYLON_WS_PORT": "x",
        "DATABASE_URL": "mysql://u:p@h/d", "PYLON_SEED": "seed.json", "PYLON_APP": "no.py",
        "PYLON_RUNTIME_DIR": "r" * 120,
    })
    (lines,) = refusals(server, "check-config")
    for words in (
        "PYLON_COOKIE_NAME is 'a b'", "PYLON_WS_PORT is 'x'", "DATABASE_URL (from", "PYLON_CSRF",
        "ENTITY_FIELDS_TOO_MANY", "PYLON_APP is 'no.py'", "socket paths of",
    ):
        assert [line for line in lines if words in line], (words, lines)
    server.manifest_path.write_text(json.dumps(app()))
    (lines,) = refusals(server, "check-config")
    assert [line for line in lines if "A[0]" in line and "PYLON_SEED" in line]
    assert not server.db_path.exists()


@pytest.mark.usefixtures("processes")
def test_a_misspelt_key_of_a_policy_is_warned_of_and_refused_in_dev_mode(tmp_path: Path) -> None:
    manifest = app() | {"policies": [
        {"name": "p", "entity": "A", "allow": "true", "allowDelet": "auth.isAdmin"}]}
    server = PylonServer(tmp_path, manifest)
    done = server.ctl("check-config", "--json")
    (warning,) = json.loads(done.stdout)["warnings"]
    assert done.returncode == 0 and "did you mean allowDelete?" in warning
    server.env["PYLON_DEV_MODE"] = "true"
    for (line,) in refusals(server, "start", "check-config"):
        assert "error MANIFEST_KEY_UNKNOWN" in line and "did you mean allowDelete?" in line


@pytest.mark.usefixtures("processes")
def test_other_verbs_do_not_mind_variables_of_the_published_server(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, app(), {"DATABASE_URL": "mysql://u:p@h/d"})
    assert server.ctl("config").returncode == 0
    assert server.ctl("status").returncode == 69
    for (line,) in refusals(server, "start", "check-config"):
        assert line.startswith("pylonctl: DATABASE_URL (from environment) has no effect")


def test_the_password_of_a_database_is_printed_by_no_verb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "PYLON_DATABASE_DIRECT_URL"):
        monkeypatch.setenv(name, "postgres://ada:geheim@db.invalid:5432/app")
    for args in (["config"], ["config", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(args)
        printed = "".join(capsys.readouterr())
        assert ended.value.code == 0 and printed.count("postgres://ada@db.invalid:5432/app") == 2
        assert "geheim" not in printed


@pytest.mark.usefixtures("processes")
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
@pytest.mark.usefixtures("processes")
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
