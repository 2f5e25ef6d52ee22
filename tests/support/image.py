"""A Dockerfile followed in root folders of Debian, where no Docker engine is.

`build_image` carries out the instructions of the file, one root folder for each stage; a Debian 12
with Python 3.11 takes the place of the base image. `Container` runs the image as Docker would: its
command as the first process, its user, its environment, and a root that is read-only.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from types import TracebackType

from tests.support.debian import Machine

REPOSITORY = Path(__file__).parent.parent.parent
_START_S = 30.0


@dataclass
class Image:
    """What the last stage of a Dockerfile says of the containers."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    user: str = "0:0"
    folder: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a file: names and arguments, with continued lines joined."""
    lines = [x for x in dockerfile.read_text().splitlines() if not x.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (name, rest) for line in joined.splitlines() if line.strip()
        for name, _, rest in (line.strip().partition(" "),)
    ]


def build_image(dockerfile: Path, folder: Path, stack: ExitStack) -> Image:
    """Follow a Dockerfile; its folders go with the stack."""
    stages: dict[str, Machine] = {}
    machine: Machine | None = None
    image = Image(folder)
    for name, rest in instructions(dockerfile):
        if name == "FROM":
            _, _, stage = rest.partition(" AS ")
            machine = stack.enter_context(Machine(folder / (stage or "last")))
            stages[stage] = machine
            image = Image(machine.root)
        elif name != "ARG":
            assert machine is not None
            _carry_out(name, rest, image, machine, stages)
    return image


def _carry_out(
    name: str, rest: str, image: Image, machine: Machine, stages: dict[str, Machine]
) -> None:
    inside = machine.root / image.folder.lstrip("/")
    if name == "RUN":
        exports = "".join(f"export {k}={shlex.quote(v)}\n" for k, v in image.env.items())
        machine.prepare(f"{exports}cd {image.folder}\n{rest}", timeout_s=500)
    elif name == "COPY":
        _copy(rest, inside, machine, stages)
    elif name == "ENV":
        image.env |= dict(part.split("=", 1) for part in shlex.split(rest))
    elif name == "WORKDIR":
        image.folder = rest
        (machine.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif name == "USER":
        image.user = rest
    elif name == "VOLUME":
        image.volumes = json.loads(rest)
    elif name == "HEALTHCHECK":
        image.health = json.loads(rest.partition("CMD ")[2])
    elif name == "ENTRYPOINT":
        image.entrypoint = json.loads(rest)
    elif name == "CMD":
        image.command = json.loads(rest)
    else:
        assert name in ("EXPOSE", "STOPSIGNAL"), f"{name} is not followed here"


def _copy(rest: str, inside: Path, machine: Machine, stages: dict[str, Machine]) -> None:
    words = rest.split()
    options = dict(w[2:].split("=") for w in words if w.startswith("--"))
    *sources, target = [word for word in words if not word.startswith("--")]
    place = machine.root / target.lstrip("/") if target.startswith("/") else inside / target
    origin = stages[options["from"]].root if "from" in options else REPOSITORY
    for source in sources:
        found = origin / source.lstrip("/")
        wanted = place / found.name if target.endswith("/") else place
        if found.is_dir():
            shutil.copytree(found, wanted, symlinks=True, dirs_exist_ok=True,
                            ignore=shutil.ignore_patterns("__pycache__") if "from" not in options
                            else None)
        else:
            wanted.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, wanted)
            wanted.chmod(int(options.get("chmod", "0644"), 8))


class Container:
    """A running image, with a read-only root. A context manager."""

    def __init__(self, image: Image, folder: Path, env: dict[str, str], binds: list[str]) -> None:
        self._image = image
        self._log = folder / "container.log"
        owner = dict(zip(("uid", "gid"), image.user.split(":"), strict=True))
        options = ",".join(f"{name}={number}" for name, number in owner.items())
        user = _user_name(image)
        self._command = [
            "systemd-nspawn", "-q", "-D", str(image.root), "--register=no", "--keep-unit",
            f"--machine=pylon-{token_hex(4)}", "--private-network", "--read-only",
            f"--user={user}", f"--chdir={image.folder}",
            *(f"--tmpfs={path}:{options},mode=0700" for path in image.volumes),
            *(f"--bind-ro={bind}" for bind in binds),
            *(f"--setenv={name}={value}" for name, value in {**image.env, **env}.items()),
            "--", *image.entrypoint, *image.command,
        ]
        self._binds = binds
        self._env = {**image.env, **env}
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.pid = 0  # of its first process, outside

    def __enter__(self) -> Container:
        for bind in self._binds:  # the root is read-only; Docker makes these files too
            target = self._image.root / bind.rpartition(":")[2].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        with self._log.open("wb") as log:
            self._nspawn = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            self._wait_started(self._nspawn)
        except BaseException:  # then `__exit__` is not called
            self._end()
            raise
        return self

    def _wait_started(self, nspawn: subprocess.Popen[bytes]) -> None:
        children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children")
        deadline_s = time.monotonic() + _START_S
        while not self.pid:
            assert time.monotonic() < deadline_s and nspawn.poll() is None, self.log()
            for pid in children.read_text().split():
                if _is_first_process(pid):
                    self.pid = int(pid)
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, ex: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if self._nspawn is not None and self._nspawn.poll() is None:
                self.stop()
        finally:
            self._end()

    def _end(self) -> None:
        """Leave no machine behind: the kernel ends the container with systemd-nspawn."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            self._nspawn.kill()
            self._nspawn.wait()

    def run(self) -> int:
        """Run it to its end, and return its exit code."""
        with self._log.open("wb") as log:
            done = subprocess.run(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=60,
                check=False,
            )
        return done.returncode

    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text(errors="replace")[-4_000:]

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the container, as `docker exec` does."""
        uid, gid = self._image.user.split(":")
        return subprocess.run(
            ["nsenter", f"--target={self.pid}", "--all", "--root", "--wd",
             "setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups",
             "env", "-i", *(f"{name}={value}" for name, value in self._env.items()), *command],
            capture_output=True, text=True, timeout=60, check=False,
        )

    def stop(self) -> int:
        """SIGTERM to its first process, and the exit code of the container."""
        assert self._nspawn is not None
        os.kill(self.pid, signal.SIGTERM)
        return self._nspawn.wait(90)


def _is_first_process(pid: str) -> bool:
    """Whether a process is the first one of a namespace, and runs its own program already."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False
    (numbers,) = (x.split()[1:] for x in status.splitlines() if x.startswith("NSpid:"))
    return len(numbers) > 1 and numbers[-1] == "1" and b"systemd-nspawn" not in program


def _user_name(image: Image) -> str:
    uid = image.user.split(":")[0]
    for line in (image.root / "etc" / "passwd").read_text().splitlines():
        name, _, number = line.split(":")[:3]
        if number == uid:
            return name
    raise AssertionError(f"the image has no user {uid}")
