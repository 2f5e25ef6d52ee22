"""A fresh Debian 12 with systemd, booted in a container, for the commands of docs/operations.

`install()` makes a root folder with debootstrap, once (about a minute, 350 MB, in the cache).
`Machine` boots systemd as its first process by systemd-nspawn, over an overlay of that folder, so
that nothing of a test stays; its network is its own. Both need root, debootstrap,
systemd-container and, for the first time, a Debian mirror.

`python -m tests.support.debian` installs the folder. `make test-tools` runs it before Pylon's
libraries are there, so this module imports only the standard library.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final

MIRROR: Final = os.environ.get("PYLON_DEBIAN_MIRROR", "http://deb.debian.org/debian")
PACKAGES: Final = (
    "systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "ca-certificates", "nginx-light",
)
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylon-tests"
_ROOT: Final = _CACHE / "debian-12-3"
_PROGRAMS: Final = (("debootstrap", "debootstrap"), ("systemd-nspawn", "systemd-container"))
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BOOT_S: Final = 180.0  # a unit may wait for 90 s before systemd goes on without it
_CUT_S: Final = 10.0
_CERTIFICATES: Final = "etc/ssl/certs/ca-certificates.crt"


class UnavailableError(Exception):
    """The machine cannot be made here; the text says why."""


def install() -> Path:
    """The root folder from the cache, or a fresh one.

    Raises:
        UnavailableError: a program or a right is missing, or debootstrap failed.
    """
    for program, package in _PROGRAMS:
        if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            raise UnavailableError(f"{program} is not installed (apt-get install {package})")
    if os.geteuid() != 0:
        raise UnavailableError("debootstrap and systemd-nspawn need root")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "debian.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _ROOT.exists():
            return _ROOT
        made = _ROOT.with_name(f"{_ROOT.name}.tmp")
        shutil.rmtree(made, ignore_errors=True)
        done = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", "bookworm",
             str(made), MIRROR],
            capture_output=True, text=True, check=False,
        )
        if done.returncode:
            raise UnavailableError(f"debootstrap failed: {(done.stdout + done.stderr)[-500:]}")
        made.rename(_ROOT)
    return _ROOT


class Machine:
    """A booted Debian. A context manager; `folder` holds the overlay meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.root = folder / "root"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.init_pid = 0
        self._umask = 0o022

    def __enter__(self) -> Machine:
        base = install()
        self._umask = os.umask(0o022)  # as of a login: its folders must be open to its users
        for name in ("upper", "work", "root"):
            (self._folder / name).mkdir(parents=True)
        # PERF: volatile: nothing is synced, as nothing stays. On a busy machine the teardown took
        # 55 s with the sync of the unmount, and 31 s without.
        options = (
            f"volatile,lowerdir={base},upperdir={self._folder}/upper,workdir={self._folder}/work"
        )
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True
        )
        # Where the machine outside trusts more (a mirror's proxy), so does the one inside.
        shutil.copyfile(f"/{_CERTIFICATES}", self.root / _CERTIFICATES)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.cut_power()
        os.umask(self._umask)
        subprocess.run(["umount", str(self.root)], check=True)
        for name in ("upper", "work"):
            shutil.rmtree(self._folder / name)

    def prepare(self, script: str, timeout_s: float = 300.0) -> str:
        """Run a script in the root folder before it boots, with the network of the machine
        outside; its output."""
        done = subprocess.run(
            ["systemd-nspawn", "-q", "-D", str(self.root), "--register=no", "--keep-unit",
             "--resolv-conf=copy-host", *_pip_settings(), "/bin/sh", "-exc", script],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def boot(self) -> None:
        """Start systemd, and wait until it is up."""
        with (self._folder / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(
                ["systemd-nspawn", "-q", "-D", str(self.root), "--register=no", "--keep-unit",
                 "--private-network", "--boot", "systemd.show_status=no"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )
        deadline_s = time.monotonic() + _BOOT_S
        while "running" not in (state := self._state()) and "degraded" not in state:
            if time.monotonic() > deadline_s or self._nspawn.poll() is not None:
                console_text = (self._folder / "console").read_text(errors="replace")
                jobs = self.run("systemctl list-jobs --no-pager || true").stdout
                raise AssertionError(f"systemd is {state!r}:\n{jobs}\n{console_text[-3_000:]}")
            time.sleep(0.05)

    def cut_power(self) -> None:
        """End the machine, if it runs. Nothing of it stays, so its units need no orderly stop: the
        end of the first process ends all others."""
        if self._nspawn is None or self._nspawn.poll() is not None:
            return
        if self.init_pid:
            os.kill(self.init_pid, signal.SIGKILL)
        try:
            self._nspawn.wait(_CUT_S)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()

    def run(self, script: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a shell script as root in the booted machine."""
        return subprocess.run(
            ["nsenter", f"--target={self.init_pid}", "--all", "--root", "--wd",
             "/usr/bin/env", "-i", f"PATH={_PATH}",
             "HOME=/root", "LANG=C.UTF-8", "/bin/sh", "-ec", f"cd /root\n{script}"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
            check=False,
        )

    def ask(self, script: str) -> str:
        """The output of a script that must work, without its last newline."""
        done = self.run(script)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout.rstrip("\n")

    def _state(self) -> str:
        assert self._nspawn is not None
        pid = self._nspawn.pid
        children = Path(f"/proc/{pid}/task/{pid}/children")
        self.init_pid = int((children.read_text().split() or ["0"])[-1])
        if not self.init_pid or not (self.root / "run").exists():
            return "starting"
        return self.run("systemctl is-system-running || true").stdout


def _pip_settings() -> list[str]:
    """What pip outside is told by its environment, as far as it holds inside."""
    options = [
        f"--setenv={name}={os.environ[name]}"
        for name in ("PIP_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "PIP_FIND_LINKS")
        if name in os.environ
    ]
    links = os.environ.get("PIP_FIND_LINKS", "")
    return [*options, f"--bind-ro={links}"] if Path(links).is_absolute() else options


if __name__ == "__main__":
    try:
        print(install())
    except UnavailableError as error:
        print(f"no Debian to boot: {error}", file=sys.stderr)
        sys.exit(1)
