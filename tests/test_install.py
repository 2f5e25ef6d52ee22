"""`pylonctl install-systemd` and `uninstall` below another root, completion, the manual page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pylon.cli.main import VERBS
from pylon.cli.man import PLACE
from pylon.cli.settings import read_settings
from pylon.install.options import InstallOptions
from pylon.install.plan import planned_files
from pylon.setting_checks import unsafe_settings
from pylon.settings import SETTINGS

ROOT = Path(__file__).parent.parent
MANIFEST = ROOT / "examples" / "todo" / "pylon.manifest.json"
UNIT = "etc/systemd/system/pylon.service"

pytestmark = pytest.mark.usefixtures("processes")
Ctl = Callable[..., subprocess.CompletedProcess[str]]


def ctl(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYLON_")}
    return subprocess.run(
        [sys.executable, "-m", "pylon.cli.main", *words], env={**clean, **env}, text=True,
        capture_output=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )


def install(root: Path, *words: str) -> dict[str, str]:
    """Install below `root`; what was done with each file, by its path below it."""
    done = ctl("--json", "install-systemd", "--root", str(root), *words)
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    return {
        step["subject"].removeprefix(f"{root}/"): step["action"] for step in body["steps"]
    }


def texts(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()
    }


NAMED = ("--domain", "api.pylon.test", "--origin", "https://web.pylon.test",
         "--manifest", str(MANIFEST))


def test_dry_run_names_every_step_and_changes_nothing(tmp_path: Path) -> None:
    planned = install(tmp_path, *NAMED, "--dry-run")
    assert list(tmp_path.iterdir()) == []
    assert planned == install(tmp_path, *NAMED)
    assert planned[UNIT] == "wrote"


def test_installation_is_of_this_program_domain_and_user(tmp_path: Path) -> None:
    install(tmp_path, *NAMED, "--user", "shop", "--proxy", "nginx")
    found = texts(tmp_path)
    program = f"{sys.prefix}/bin/pylonctl"
    assert f"ExecStart={program} start --env-file /etc/pylon/pylon.env\n" in found[UNIT]
    for name in (UNIT, "etc/systemd/system/pylon-backup.service"):
        assert "\nUser=shop\nGroup=shop\n" in found[name]
        assert "/opt/pylon" not in found[name]
    assert (tmp_path / "usr/local/bin/pylonctl").readlink() == Path(program)
    assert "    server_name api.pylon.test;\n" in found["etc/nginx/conf.d/pylon.conf"]
    assert found["etc/pylon/pylon.manifest.json"] == MANIFEST.read_text()
    assert (tmp_path / "etc/pylon/pylon.env").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "var/lib/pylon").stat().st_mode & 0o777 == 0o700


def test_app_in_python_stays_in_its_place_and_env_file_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pylon.install.plan.HIDDEN_FOLDERS", ("/home", "/root"))
    app = tmp_path / "srv" / "demo" / "app.py"
    (app.parent / "public").mkdir(parents=True)
    app.write_text("from pylon import app\n")
    root = tmp_path / "root"
    options = InstallOptions(domain="api.pylon.test", app=app, root=root)
    (env,) = [each.text for each in planned_files(options) if each.path == "etc/pylon/pylon.env"]
    assert f"PYLON_APP={app}\nPYLON_STATIC_DIR={app.parent / 'public'}\n" in env
    assert "PYLON_MANIFEST" not in env


def test_app_that_the_service_cannot_see_is_refused(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("")
    done = ctl("install-systemd", "--root", str(tmp_path / "root"), "--domain", "b.test",
               "--app", str(app))
    assert done.returncode == 1
    assert "The service does not see /tmp" in done.stderr and "below /opt or /srv" in done.stderr
    assert not (tmp_path / "root").exists()


def test_start_needs_a_manifest_or_an_app(tmp_path: Path) -> None:
    done = ctl("install-systemd", "--manifest", str(MANIFEST), "--app", str(MANIFEST))
    assert done.returncode == 64 and "not both" in done.stderr


def test_env_file_is_complete_and_safe_and_its_tokens_differ(tmp_path: Path) -> None:
    install(tmp_path, *NAMED)
    path = tmp_path / "etc/pylon/pylon.env"
    loaded = read_settings(environ={"PYLON_ENV_FILE": str(path)})
    assert (loaded.warnings, loaded.refusals) == ((), ())
    assert list(unsafe_settings(loaded.config)) == []
    config = loaded.config
    assert config.cors_origin == ("https://web.pylon.test",)
    assert config.ws_url == "wss://api.pylon.test/ws"
    assert config.admin_token != config.metrics_token
    assert {len(config.admin_token or ""), len(config.metrics_token or "")} == {64}
    assert "example.com" not in path.read_text()
    assert {s.env for s in SETTINGS if loaded.origin[s.env] == str(path)} >= {"PYLON_DB_PATH"}


def test_second_run_leaves_all_as_it_is(tmp_path: Path) -> None:
    install(tmp_path, *NAMED, "--proxy", "caddy")
    before = texts(tmp_path)
    assert set(install(tmp_path, *NAMED, "--proxy", "caddy").values()) == {"unchanged"}
    assert texts(tmp_path) == before
    # The settings of an earlier run stay, and need no name.
    assert set(install(tmp_path).values()) == {"unchanged"}
    assert texts(tmp_path) == before


def test_edited_file_stays_and_another_is_brought_up_to_date(tmp_path: Path) -> None:
    install(tmp_path, *NAMED, "--proxy", "nginx")
    unit, site = tmp_path / UNIT, tmp_path / "etc/nginx/conf.d/pylon.conf"
    env = (tmp_path / "etc/pylon/pylon.env").read_text()
    edited = unit.read_text() + "# ours\n"
    unit.write_text(edited)
    done = ctl("install-systemd", "--root", str(tmp_path), "--proxy", "nginx", "--domain", "b.test")
    assert f"kept       {unit} (it was edited; the new text is in {unit}.new)" in done.stdout
    assert f"replaced   {site} (nobody had edited it)" in done.stdout
    assert unit.read_text() == edited
    assert "# ours" not in unit.with_name("pylon.service.new").read_text()
    assert "server_name b.test;" in site.read_text()
    assert (tmp_path / "etc/pylon/pylon.env").read_text() == env


def test_file_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "usr/local/bin").mkdir(parents=True)
    (tmp_path / "usr/local/bin/pylonctl").write_text("#!/bin/sh\n")
    (tmp_path / "etc/caddy").mkdir(parents=True)
    (tmp_path / "etc/caddy/Caddyfile").write_text(":80 {\n}")
    done = install(tmp_path, *NAMED, "--proxy", "caddy")
    assert done["usr/local/bin/pylonctl"] == "kept"
    assert done["etc/caddy/Caddyfile"] == "changed"
    assert (tmp_path / "etc/caddy/Caddyfile").read_text() == ":80 {\n}\nimport pylon.caddy\n"
    assert ctl("uninstall", "--root", str(tmp_path)).returncode == 0
    assert (tmp_path / "usr/local/bin/pylonctl").read_text() == "#!/bin/sh\n"
    assert (tmp_path / "etc/caddy/Caddyfile").read_text() == ":80 {\n}\n"


def test_name_is_required_where_no_settings_are_yet(tmp_path: Path) -> None:
    done = ctl("install-systemd", "--root", str(tmp_path))
    assert (done.returncode, done.stderr) == (
        1, "pylonctl: The name that clients reach the server by is missing "
        "(--domain api.example.com)\n")
    assert list(tmp_path.iterdir()) == []


def test_uninstall_keeps_data_settings_and_edited_files_until_told(tmp_path: Path) -> None:
    install(tmp_path, *NAMED, "--proxy", "nginx")
    (tmp_path / "var/lib/pylon/pylon.db").write_text("rows")
    (tmp_path / UNIT).write_text("[Unit]\n# ours\n")
    before = texts(tmp_path)
    assert ctl("uninstall", "--root", str(tmp_path), "--dry-run").returncode == 0
    assert texts(tmp_path) == before
    done = ctl("uninstall", "--root", str(tmp_path))
    assert f"kept       {tmp_path / UNIT} (it was edited)" in done.stdout
    assert set(texts(tmp_path)) == {
        UNIT, "var/lib/pylon/pylon.db", "etc/pylon/pylon.env", "etc/pylon/pylon.manifest.json",
        "etc/pylon/installed.json"}
    assert ctl("uninstall", "--root", str(tmp_path), "--delete-data", "--yes").returncode == 0
    assert set(texts(tmp_path)) == {UNIT}
    again = ctl("uninstall", "--root", str(tmp_path))
    assert again.returncode == 1
    assert "has installed nothing here" in again.stderr


def test_uninstall_deletes_data_only_after_a_yes(tmp_path: Path) -> None:
    install(tmp_path, *NAMED)
    before = texts(tmp_path)
    assert ctl("uninstall", "--root", str(tmp_path), "--delete-data").returncode == 1
    assert texts(tmp_path) == before
    done = ctl("uninstall", "--root", str(tmp_path), "--delete-data", "--yes")
    assert done.returncode == 0, done.stderr
    assert texts(tmp_path) == {}
    assert not (tmp_path / "var/lib/pylon").exists()


def test_caddy_accepts_the_installed_site(
    program: Callable[[str, str], str], tmp_path: Path
) -> None:
    caddy = program("caddy", "caddy")
    install(tmp_path, *NAMED, "--proxy", "caddy")
    done = subprocess.run(
        [caddy, "adapt", "--config", str(tmp_path / "etc/caddy/Caddyfile")],
        capture_output=True, text=True, check=False, timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (server,) = json.loads(done.stdout)["apps"]["http"]["servers"].values()
    assert server["routes"][0]["match"] == [{"host": ["api.pylon.test"]}]


@pytest.mark.parametrize(
    ("words", "found"),
    [("pylonctl inst", "install-systemd"), ("pylonctl install-systemd --dry", "--dry-run"),
     ("pylonctl install-systemd --proxy n", "nginx\nnone"), ("pylonctl schema fin", "finish")],
    ids=["verb", "option", "choice", "inner-verb"],
)
def test_bash_completes(words: str, found: str) -> None:
    script = ctl("completion", "bash").stdout
    parts = words.split()
    program = f"{sys.prefix}/bin/pylonctl"
    done = subprocess.run(
        ["bash", "-c", f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={len(parts) - 1}\n"
         f'_pylonctl_completion {program}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        capture_output=True, text=True, check=True, timeout=60,
    )
    assert done.stdout.strip() == found


def test_manual_page_has_every_verb_and_groff_finds_no_fault(
    program: Callable[[str, str], str], tmp_path: Path
) -> None:
    install(tmp_path, *NAMED)
    page = tmp_path / PLACE
    assert page.read_text() == ctl("man").stdout
    done = subprocess.run(
        [program("groff", "groff-base"), "-ww", "-man", "-Tutf8", "-P-cbou", str(page)],
        capture_output=True, text=True, check=True, timeout=60,
    )
    assert done.stderr == ""
    assert "pylonctl - run and operate a Pylon server" in done.stdout
    for verb in (*VERBS, "schema apply"):
        assert re.search(rf"^   {verb} +\[OPTIONS\]", done.stdout, re.MULTILINE), verb
