"""The files in deploy/: each judged by its own checker, and made of Pylon's own settings."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pylon.config import load, parse_dotenv, refuse_unsafe
from pylon.roles import PORT_BY_ROLE
from pylon.settings import ENV_FILE_NAME, SETTINGS
from tests.conftest import IN_CI
from tests.support import sst
from tests.support.deploy_checkers import UnavailableError, install, run_checker

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KNOWN = {setting.env for setting in SETTINGS} | {ENV_FILE_NAME}
FOLDERS = ("docker", "tiers", "kubernetes", "terraform", "sst")
TEXTS = sorted(
    path for folder in FOLDERS for path in (DEPLOY / folder).rglob("*")
    if path.is_file() and "node_modules" not in path.parts
)


@pytest.fixture(scope="module")
def checkers(processes: None) -> Path:
    """The folder of the checkers, or a skip that says why they are not there."""
    try:
        return install()
    except UnavailableError as ex:
        if IN_CI:
            pytest.fail(f"in CI nothing installable is skipped: {ex}")
        pytest.skip(str(ex))


def findings_of_checkov(checkers: Path, place: Path) -> list[str]:
    """What checkov finds in a folder or a file. A skip in the files needs its reason there."""
    done = run_checker(
        checkers, "checkov", "--skip-download", "--quiet", "--compact", "--output", "json",
        "--directory" if place.is_dir() else "--file", str(place),
    )
    reports = json.loads(done.stdout)
    found = []
    passed = 0
    for report in reports if isinstance(reports, list) else [reports]:
        assert report["summary"]["parsing_errors"] == 0
        passed += report["summary"]["passed"]
        found += [f"{x['check_id']} {x['resource']}" for x in report["results"]["failed_checks"]]
        for skipped in report["results"].get("skipped_checks", []):
            assert skipped["check_result"]["suppress_comment"].strip(), "a skip has its reason"
    assert passed > 10
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(DEPLOY)))
def test_every_variable_is_a_setting(path: Path) -> None:
    named = set(re.findall(r"\bPYLON_[A-Z][A-Z0-9_]*[A-Z0-9]\b", path.read_text()))
    assert sorted(named - KNOWN) == []


def test_dockerfile_and_its_shell_have_no_findings(checkers: Path) -> None:
    docker = DEPLOY / "docker"
    for name, path in (("hadolint", "Dockerfile"), ("shellcheck", "entrypoint.sh")):
        done = run_checker(checkers, name, str(docker / path))
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert findings_of_checkov(checkers, docker) == []


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("compose*.yaml")), ids=lambda p: p.name)
def test_compose_files_fit_the_specification(checkers: Path, path: Path, tmp_path: Path) -> None:
    words = ("--builtin-schema", "vendor.compose-spec")
    done = run_checker(checkers, "check-jsonschema", *words, str(path))
    assert done.returncode == 0, done.stdout
    broken = tmp_path / path.name
    broken.write_text(path.read_text().replace("image:", "imag:", 1))
    assert run_checker(checkers, "check-jsonschema", *words, str(broken)).returncode == 1


def test_yaml_is_tidy(checkers: Path) -> None:
    paths = [str(path) for path in TEXTS if path.suffix in (".yaml", ".yml")]
    rules = "{extends: relaxed, rules: {line-length: {max: 110}}}"
    done = run_checker(checkers, "yamllint", "--strict", "-d", rules, *paths)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.env.example")), ids=lambda p: p.parent.name)
def test_example_settings_are_safe_once_the_tokens_are_there(path: Path) -> None:
    tokens = {
        name: hashlib.sha256(name.encode()).hexdigest()
        for name in ("PYLON_ADMIN_TOKEN", "PYLON_METRICS_TOKEN", "PYLON_SECRET_KEY")
    }
    env = {
        name: tokens.get(name, value) for name, value in parse_dotenv(path.read_text()).items()
    }
    loaded = load({}, env)
    assert (loaded.warnings, loaded.refusals) == ((), ())
    refuse_unsafe(loaded.config)


def test_caddy_in_a_container_serves_the_same_site() -> None:
    def site(path: Path, host: str) -> str:
        return path.read_text().split("\n{$DOMAIN} {")[-1].split("\napi.example.com {")[-1].replace(
            host, "HOST:43"
        )

    shipped = ROOT / "pylon" / "install" / "files" / "pylon.caddy"
    assert site(DEPLOY / "docker" / "Caddyfile", "pylon:43") == site(shipped, "127.0.0.1:43")


def test_nginx_of_tiers_is_the_shipped_site_behind_its_upstreams() -> None:
    def site(path: Path) -> str:
        return path.read_text().partition("# Published clients whose base URL")[2]

    shipped = ROOT / "pylon" / "install" / "files" / "pylon.conf"
    assert site(DEPLOY / "tiers" / "nginx.conf") == site(shipped)


def test_unit_of_a_role_is_sound_and_hardened(
    program: Callable[[str, str], str], tmp_path: Path
) -> None:
    analyze = program("systemd-analyze", "systemd")
    unit = tmp_path / "pylon@.service"
    shipped = (DEPLOY / "tiers" / unit.name).read_text()
    unit.write_text(shipped.replace("/opt/pylon/bin/pylonctl", "/bin/true"))
    done = run(analyze, "verify", str(tmp_path / "pylon@http.service"), folder=tmp_path, unit=unit)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    done = run(analyze, "security", "--offline=true", "--threshold=16", str(unit))
    assert done.returncode == 0, done.stdout


def run(
    *command: str, folder: Path | None = None, unit: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program; `unit` is linked as the instance that the last word names."""
    if folder is not None and unit is not None:
        Path(command[-1]).symlink_to(unit)
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("shape", ["single", "tiers"])
def test_kubernetes_shapes_are_valid_and_without_findings(
    checkers: Path, tmp_path: Path, shape: str
) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:  # it is in no registry of packages
        pytest.skip("kubectl is not installed, and kustomize is a part of it")
    done = run(kubectl, "kustomize", str(DEPLOY / "kubernetes" / shape))
    assert done.returncode == 0, done.stderr
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(done.stdout)
    words = ("--strict", "--kubernetes-version", "1.33", str(rendered))
    checked = run_checker(checkers, "kubernetes-validate", *words)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    rendered.write_text(done.stdout.replace("readOnlyRootFilesystem:", "readOnlyRootFileSystem:"))
    assert run_checker(checkers, "kubernetes-validate", *words).returncode != 0
    rendered.write_text(done.stdout)
    assert findings_of_checkov(checkers, rendered) == []
    # Every service reaches pods that have its ports, and the ingress names these services.
    for role, port in PORT_BY_ROLE.items():
        number = load({}).config.port_of(role)
        assert f"containerPort: {number}" in done.stdout, port
        assert f"number: {number}" in done.stdout


def test_manifest_of_kubernetes_is_the_example() -> None:
    example = ROOT / "examples" / "todo" / "pylon.manifest.json"
    copy = DEPLOY / "kubernetes" / "base" / "pylon.manifest.json"
    assert copy.read_text() == example.read_text()


def blocks(place: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The blocks of a kind in the files of a folder, by name, as python-hcl2 reads them."""
    read = (
        "import hcl2, json, sys, pathlib\n"
        "print(json.dumps([hcl2.loads(p.read_text()) for p in "
        "sorted(pathlib.Path(sys.argv[1]).glob('*.tf'))]))"
    )
    done = run_checker(install(), "python3", "-c", read, str(place))
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = {}
    for file in json.loads(done.stdout):
        for block in file.get(kind, []):
            for name, body in block.items():
                found[name.strip('"')] = body
    return found


MODULES = sorted({path.parent for path in (DEPLOY / "terraform").rglob("*.tf")})


@pytest.mark.parametrize("place", MODULES, ids=lambda p: str(p.relative_to(DEPLOY / "terraform")))
def test_terraform_parses_and_every_variable_is_typed_described_and_used(
    checkers: Path, place: Path
) -> None:
    assert checkers.is_dir()
    variables = blocks(place, "variable")
    text = "".join(path.read_text() for path in place.glob("*.tf"))
    assert len(variables) > 5
    for name, body in variables.items():
        assert {"type", "description"} <= set(body), name
        assert f"var.{name}" in text, f"{name} is not used"
    for name, body in blocks(place, "output").items():
        assert "description" in body, name
    for name, body in blocks(place, "module").items():
        known = set(blocks(DEPLOY / "terraform" / "modules" / "pylon", "variable"))
        given = {key for key in body if not key.startswith("__")} - {"source"}
        assert given <= known, name


def test_terraform_is_formatted_and_without_findings(checkers: Path) -> None:
    assert findings_of_checkov(checkers, DEPLOY / "terraform") == []
    terraform = shutil.which("terraform")
    if terraform is None:  # it is in no registry of packages
        pytest.skip("checkov found nothing; terraform is not installed, so `fmt` was not run")
    done = subprocess.run(
        [terraform, "fmt", "-check", "-recursive", "-diff", str(DEPLOY / "terraform")],
        env={**os.environ, "TF_CLI_CONFIG_FILE": os.devnull}, capture_output=True, text=True,
        check=False, timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_sst_configuration_has_the_types_of_its_platform() -> None:
    try:
        folder = sst.install()
    except sst.UnavailableError as ex:
        if IN_CI and shutil.which("npm"):
            pytest.fail(f"in CI nothing installable is skipped: {ex}")
        pytest.skip(str(ex))
    config = (DEPLOY / "sst" / "sst.config.ts").read_text()
    assert sst.type_errors(folder, config) == []
    (error,) = sst.type_errors(folder, config.replace("cpuUtilization: 60", 'cpuUtilization: "60"'))
    assert "TS2322" in error
