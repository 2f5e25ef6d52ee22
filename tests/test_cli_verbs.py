"""`pylonctl` as a process: exit codes, one line for an error, JSON; no server needed."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.support import stores
from tests.support.cli import GOOD, Ctl, decode_output
from tests.support.manifests import notes_app
from tests.support.ports import reserve_base_port

pytestmark = pytest.mark.stores


def test_version(ctl: Ctl) -> None:
    assert ctl("version").stdout.startswith("pylonctl 0.")
    assert set(decode_output(ctl("--json", "version"))) == {"version"}
    assert decode_output(ctl("version", "--json")) == decode_output(ctl("--json", "version"))


@pytest.mark.parametrize(
    "args", [["nonsense"], ["start", "--nonsense"], ["restore"], ["backup"], ["backup", "a", "b"]]
)
def test_usage_errors_exit_with_64(ctl: Ctl, args: list[str]) -> None:
    done = ctl(*args)
    assert done.returncode == 64
    assert "Error:" in done.stderr


def test_config_prints_values_and_origins_and_masks_secrets(ctl: Ctl) -> None:
    done = ctl("config", PYLON_LIST_LIMIT="7")
    assert "PYLON_LIST_LIMIT=7" in done.stdout
    assert "# environment" in done.stdout
    assert GOOD["PYLON_ADMIN_TOKEN"] not in done.stdout
    settings = decode_output(ctl("config", "--json"))["settings"]
    assert settings["PYLON_ADMIN_TOKEN"]["value"] == "********"
    assert settings["PYLON_DURABILITY"] == {
        "value": "normal", "origin": "default", "secret": False,
        "help": settings["PYLON_DURABILITY"]["help"],
    }


def test_config_warns_of_a_misspelt_name(ctl: Ctl) -> None:
    done = ctl("config", PYLON_PROT="1")
    assert done.returncode == 0
    assert "did you mean PYLON_PORT?" in done.stderr


def test_check_config_is_content(ctl: Ctl) -> None:
    done = ctl("check-config")
    assert (done.returncode, done.stdout) == (0, "the configuration is fine\n")


def test_check_config_lists_all_problems(ctl: Ctl, tmp_path: Path) -> None:
    port = reserve_base_port()
    bad = notes_app()
    bad["policies"][0]["allow"] = "data.nope =="
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(bad))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        done = ctl(
            "check-config", "--json", PYLON_CORS_ORIGIN="*", PYLON_PORT=str(port),
            PYLON_DB_PATH="pylon.manifest.json/x.db",
        )
    assert done.returncode == 78
    problems = "\n".join(decode_output(done)["problems"])
    for part in ('PYLON_CORS_ORIGIN="*"', "POLICY_EXPRESSION_INVALID", "PYLON_WS_PORT",
                 "is not a folder"):
        assert part in problems


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"PYLON_CORS_ORIGIN": ""}, "PYLON_CORS_ORIGIN must be set in production"),
        ({"PYLON_CORS_ORIGIN": "*"}, 'PYLON_CORS_ORIGIN="*" is refused in production mode'),
        ({"PYLON_DEV_MODE": "true", "PYLON_ADMIN_TOKEN": ""}, "PYLON_ADMIN_TOKEN is not set"),
        ({"PYLON_PORT": "many"}, "PYLON_PORT is 'many': expected a whole number"),
        ({"PYLON_MANIFEST": "none.json"}, "none.json"),
        ({"PYLON_DB_PATH": "/proc/none/app.db"}, "/proc/none"),
    ],
)
def test_start_refuses_with_one_line_and_78(ctl: Ctl, env: dict[str, str], says: str) -> None:
    done = ctl("start", **env)
    assert done.returncode == 78
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith("pylonctl: ") and says in line
    assert "Traceback" not in done.stderr


def test_start_names_the_port_that_is_taken_and_its_setting(ctl: Ctl) -> None:
    port = reserve_base_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 2))
        taken.listen()
        done = ctl("start", PYLON_PORT=str(port))
    assert done.returncode == 78
    assert str(port + 2) in done.stderr and "PYLON_SSE_PORT" in done.stderr


def test_start_prints_every_diagnostic_of_a_bad_manifest(ctl: Ctl, tmp_path: Path) -> None:
    bad = notes_app()
    bad["entities"][0]["fields"][0]["type"] = "blob"
    bad["entities"].append({"name": "", "fields": [], "indexes": []})
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(bad, indent=1))
    done = ctl("start", "--json")
    assert done.returncode == 78
    codes = {d["code"] for d in decode_output(done)["diagnostics"]}
    assert {"FIELD_TYPE_UNKNOWN", "ENTITY_NAME_EMPTY"} <= codes
    assert all(code in done.stderr for code in codes)


@pytest.mark.parametrize("verb", ["status", "stop"])
def test_nothing_runs(ctl: Ctl, verb: str) -> None:
    assert ctl(verb).returncode == 69
    body = decode_output(ctl(verb, "--json"))
    assert body.get("running") is False or body["error"]["code"] == "NOT_RUNNING"


def test_a_stale_pidfile_is_not_a_running_server(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / ".pylon").mkdir()
    (tmp_path / ".pylon" / "dev.db.pid").write_text(json.dumps(
        {"pid": os.getpid(), "runtime_dir": "/tmp/none", "ports": {}, "started_at_s": 1.0}
    ))
    assert ctl("status").returncode == 69
    assert ctl("stop").returncode == 69


@pytest.mark.sqlite  # a database that no start has made
def test_backup_verify_restore_without_a_server(ctl: Ctl, tmp_path: Path) -> None:
    assert "there is no database" in ctl("backup", "b").stderr
    (tmp_path / ".pylon").mkdir()
    stores.run_sql(tmp_path / ".pylon" / "dev.db", "CREATE TABLE t(x); INSERT INTO t VALUES (1)")
    body = decode_output(ctl("backup", "b", "--json"))
    assert body["ok"] and body["db"] and body["manifest"] and body["uploaded_files"] == 0
    assert ctl("backup", "b").returncode == 1
    assert decode_output(ctl("backup", "verify", "b", "--json"))["ok"]
    aborted = ctl("restore", "b", stdin="n\n")
    assert (aborted.returncode, aborted.stdout) == (0, "Aborted.\n")
    nobody = ctl("restore", "b", stdin="")
    assert (nobody.returncode, nobody.stdout) == (1, "Aborted.\n")
    done = ctl("restore", "b", "--json", stdin="y\n")
    assert done.returncode == 0, done.stderr
    assert decode_output(done)["replaced"]
    assert ctl("restore", "nowhere", "--yes").returncode == 1


@pytest.mark.sqlite
def test_memory_has_no_backup(ctl: Ctl) -> None:
    done = ctl("backup", "b", PYLON_IN_MEMORY="1")
    assert done.returncode == 1
    assert "PYLON_IN_MEMORY" in done.stderr
