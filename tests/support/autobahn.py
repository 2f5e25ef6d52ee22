"""Autobahn|Testsuite, the WebSocket conformance suite, installed beside the project.

The suite runs on CPython 2.7 alone, which no current distribution has. So the packages of
Debian 11 are unpacked (not installed) into a cache folder, together with the suite and the
versions that its makers pin; `~/.cache/pylon-tests` keeps it for the next run.

`python -m tests.support.autobahn` installs it. It needs apt-get, dpkg and Debian's keyring, a
mirror that still has Debian 11, and PyPI; not root. With a C compiler the suite is several
times as fast. `make test-tools` runs it before Pylon's libraries are there, so this module imports
only the standard library.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SUITE: Final = "autobahntestsuite==25.10.1"
MIRROR: Final = os.environ.get("PYLON_DEBIAN_MIRROR", "http://deb.debian.org/debian")
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylon-tests"
_PACKAGES: Final = (
    "python2.7", "python2.7-minimal", "libpython2.7-minimal", "libpython2.7-stdlib", "libssl1.1",
    "libffi7", "libpython2.7-dev",
)
_TOOLS: Final = ("pip==20.3.4", "setuptools==44.1.1", "wheel==0.37.1")
_PINNED: Final = (  # the suite's own, without its extra for speed, which is tried apart
    "txaio==2.1.0", "incremental==16.10.1", "pyOpenSSL==19.1.0", "cryptography==3.3.2",
    "Twisted==19.10.0", "zope.interface==4.6.0", "jinja2==2.11.3", "markupsafe==1.1.1",
    "Werkzeug==1.0.1", "klein==17.10.0", "service_identity==18.1.0", "unittest2==1.1.0",
    "six==1.16.0", "autobahn==0.10.9", "setuptools==44.1.1",
)
_FASTER: Final = "wsaccel==0.6.2"
_STEP_S: Final = 180


class UnavailableError(Exception):
    """The suite cannot be installed here; the text says why."""


@dataclass(frozen=True, slots=True)
class Suite:
    """An unpacked suite."""

    folder: Path

    def python(self, *args: str, **env: str) -> tuple[list[str], dict[str, str]]:
        """A command of its interpreter, and the environment that it needs."""
        (libraries,) = (self.folder / "root/usr/lib").glob("*-linux-gnu")
        path = os.pathsep.join(str(self.folder / part) for part in ("site", "tools"))
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return [str(self.folder / "root/usr/bin/python2.7"), *args], {
            **kept, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": path,
            "PYTHONHOME": str(self.folder / "root/usr"), **env,
        }

    def run(self, url: str, folder: Path, cases: list[str], timeout_s: float) -> dict[str, Any]:
        """Test the server at `url`; the outcome of each case, by its number."""
        report = folder / "report"
        spec = folder / "spec.json"
        spec.write_text(json.dumps({
            "outdir": str(report), "cases": cases, "exclude-cases": [], "exclude-agent-cases": {},
            "servers": [{"agent": "pylon", "url": url, "options": {"version": 18}}],
        }))
        start = "from autobahntestsuite.wstest import run; run()"
        command, env = self.python("-c", start, "-m", "fuzzingclient", "-s", str(spec))
        done = subprocess.run(
            command, env=env, cwd=folder, timeout=timeout_s, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2_000:]
        found: dict[str, Any] = json.loads((report / "index.json").read_text())["pylon"]
        return found


def install() -> Suite:
    """The suite from the cache, or a fresh one.

    Raises:
        UnavailableError: see there.
    """
    final = _CACHE / SUITE.replace("==", "-")
    if final.exists():
        return Suite(final)
    for program in ("apt-get", "dpkg"):
        if shutil.which(program) is None:
            raise UnavailableError(f"{program} is not installed: this is no Debian")
    if not _KEYRING.exists():
        raise UnavailableError(f"{_KEYRING} is missing (apt-get install debian-archive-keyring)")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE) as name:
        folder = Path(name) / "suite"
        folder.mkdir()
        suite = Suite(folder)
        _unpack_interpreter(folder)
        _install_packages(suite)
        try:
            folder.rename(final)
        except OSError:  # somebody else was quicker
            if not final.exists():
                raise
    return Suite(final)


def _unpack_interpreter(folder: Path) -> None:
    apt, debs = folder / "apt", folder / "debs"
    for made in (apt / "lists/partial", apt / "archives/partial", debs):
        made.mkdir(parents=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {MIRROR} bullseye main\n")
    settings = apt / "apt.conf"
    settings.write_text("".join(f'{name} "{value}";\n' for name, value in {
        "Dir::Etc::sourcelist": apt / "sources.list", "Dir::Etc::sourceparts": "-",
        "Dir::State": apt, "Dir::State::lists": apt / "lists", "Dir::State::status": apt / "status",
        "Dir::Cache": apt, "Acquire::Languages": "none", "APT::Sandbox::User": "root",
        "Acquire::Check-Valid-Until": "false",  # the distribution gets no more updates
    }.items()))
    env = {**os.environ, "APT_CONFIG": str(settings)}
    _step("the package lists of Debian 11", ["apt-get", "update", "-qq"], env, folder)
    _step("the packages of Python 2.7", ["apt-get", "download", "-qq", *_PACKAGES], env, debs)
    for deb in sorted(debs.glob("*.deb")):
        _step(deb.name, ["dpkg", "-x", str(deb), str(folder / "root")], env, folder)
    shutil.rmtree(apt)
    shutil.rmtree(debs)


def _install_packages(suite: Suite) -> None:
    folder = suite.folder
    wheels, tools, site = folder / "wheels", folder / "tools", folder / "site"
    env = dict(os.environ)
    # Debian's own Python has no pip; a virtual environment has one.
    _step("pip (apt-get install python3-venv)", [sys.executable, "-m", "venv", "venv"], env, folder)
    _step(
        "pip for Python 2.7",
        [str(folder / "venv/bin/python"), "-m", "pip", "download", "-q", "--no-deps",
         "-d", str(wheels), *_TOOLS],
        env, folder,
    )
    shutil.rmtree(folder / "venv")
    (pip,) = wheels.glob("pip-*.whl")
    own = ["install", "-q", "--no-index", "--find-links", str(wheels), "--target", str(tools)]
    _step("pip", *suite.python(f"{pip}/pip", *own, *_TOOLS), folder)
    more = ["-m", "pip", "install", "-q", "--target", str(site)]
    _step("the suite's requirements", *suite.python(*more, *_PINNED), folder)
    one = [*more, "--no-deps", "--no-build-isolation"]
    _step("the suite", *suite.python(*one, "--no-binary", "autobahntestsuite", SUITE), folder)
    (site / "zope/__init__.py").touch()  # a namespace package: its .pth file is not read there
    include = folder / "root/usr/include"
    compiler = folder / "cc"  # which must not load the libraries of Debian 11
    compiler.write_text(
        f'#!/bin/sh\nexec env -u LD_LIBRARY_PATH cc -I{include}/python2.7 -I{include} "$@"\n'
    )
    compiler.chmod(0o755)
    faster = suite.python(
        *one, _FASTER, CC=str(compiler), LDSHARED=f"{compiler} -shared", CFLAGS="-O2 -fPIC"
    )
    try:
        _step("the suite's extra for speed", *faster, folder)
    except UnavailableError:
        shutil.rmtree(site / "wsaccel", ignore_errors=True)


def _step(what: str, command: list[str], env: dict[str, str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, env=env, cwd=folder, capture_output=True, text=True, timeout=_STEP_S
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{what}: not in {_STEP_S} s") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise UnavailableError(f"{what}: {said[0]}")


if __name__ == "__main__":
    try:
        print(f"Autobahn|Testsuite is in {install().folder}")
    except UnavailableError as ex:
        sys.exit(f"Autobahn|Testsuite cannot be installed here: {ex}")
