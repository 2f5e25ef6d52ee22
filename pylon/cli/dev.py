"""`pylonctl dev`: start with dev defaults, and reload when the app changes.

Runs `pylonctl start --dev` as a child, and compares the modification times of the manifest, the
seed, the `.env` files and the Python files of the app's folder, ten times a second. After a change
it tries the app, and sends the child SIGHUP: the child drains and begins anew within its process,
with the ports open and its template process at hand, so that nothing but the app is imported.

Invariants: a manifest or an app that is not valid is reported and the running server kept; the
server does not outlive this process; Ctrl-C reaches the server once, through us (it is in a
session of its own, as two signals would cut its drain short).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import FrameType

import click

from pylon.cli.output import CONFIG, failure_lines, json_flag, note, wants_json
from pylon.cli.serve import serve
from pylon.cli.settings import dotenv_files, read_settings
from pylon.config import Config
from pylon.errors import StartRefused
from pylon.realtime.app_module import try_app_module
from pylon.runtime.parent_death import die_with_parent
from pylon.startup import load_checked

_POLL_S = 0.1
_LOOKING_SHARE = 0.05  # of the time, where the app's folder has many files
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "venv", "build", "dist"})

Seen = dict[Path, int]  # modification time in ns of each watched file


@click.command()
@click.option("--port", type=int, help="Sets PYLON_PORT.")
@click.option("--once", is_flag=True, help="Do not watch for changes.")
@json_flag
@click.pass_context
def dev(ctx: click.Context, port: int | None, once: bool) -> None:
    """Serve the app of this folder with dev defaults; restart when it changes."""
    flags = {"PYLON_PORT": None if port is None else str(port)}
    if once:
        ctx.exit(serve(read_settings(dev=True, flags=flags)))
    ctx.exit(_Watch(_command(port)).run())


def _command(port: int | None) -> list[str]:
    command = [sys.executable, "-m", "pylon.cli.main", "start", "--dev"]
    if port is not None:
        command += ["--port", str(port)]
    if wants_json():
        command.append("--json")
    return command


class _Watch:
    """One `pylonctl dev`: the child, and what the files looked like when it started."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._dotenv: Seen = {}
        self._settings: Config | None = None
        self._look_s = 0.0  # how long the last look took

    def run(self) -> int:
        """Until a signal ends it, or the first start fails; the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        seen = self._look()
        self._spawn()
        started = False
        while True:
            code = self._child.poll() if self._child is not None else None
            if self._ending and (self._child is None or code is not None):
                return code or 0
            if code == 0 or (code is not None and not started):
                return code  # stopped by `pylonctl stop`; or the very first start failed
            if code is not None:
                self._child = None
                note(f"the server ended with code {code}; waiting for a change")
            time.sleep(max(_POLL_S, self._look_s / _LOOKING_SHARE))
            now = self._look()
            changed = differences(seen, now)
            if not changed or self._ending:
                continue
            started = True
            seen = now
            note(f"changed: {', '.join(sorted(path.name for path in changed))}")
            if app_is_fine():
                self._reload()

    def _look(self) -> Seen:
        """Return what there is; read the settings again when a `.env` file has changed."""
        started_s = time.monotonic()
        dotenv = look(dotenv_files(Path.cwd()))
        if self._settings is None or dotenv != self._dotenv:
            self._dotenv, self._settings = dotenv, _settings()
        seen = look(watched_files(Path.cwd(), self._settings))
        self._look_s = time.monotonic() - started_s
        return seen

    def _spawn(self) -> None:
        # preexec_fn is safe here: this process has one thread.
        self._child = subprocess.Popen(
            self._command, start_new_session=True,
            preexec_fn=partial(  # noqa: PLW1509
                die_with_parent, os.getpid(), signal.SIGTERM
            ),
        )

    def _reload(self) -> None:
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGHUP)
        elif not self._ending:
            self._spawn()

    def _end(self, number: int, _: FrameType | None) -> None:
        self._ending = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)


def _settings() -> Config | None:
    """The settings as they are now; None while a `.env` file cannot be understood."""
    try:
        return read_settings(dev=True).config
    except StartRefused:
        return None


def app_is_fine() -> bool:
    """Whether a restart has a chance; if not, says why on stderr."""
    try:
        loaded = read_settings(dev=True)
        load_checked(loaded)
        try_app_module(loaded.config, in_fork=True)
    except StartRefused as ex:
        for line in failure_lines(ex):
            note(line)
        note(f"not restarted (a start would end with code {CONFIG})")
        return False
    return True


def watched_files(folder: Path, config: Config | None) -> Iterable[Path]:
    """The files whose change means a restart."""
    yield from dotenv_files(folder)
    if config is None:
        return
    manifest = Path(config.manifest).absolute()
    yield manifest
    if config.seed is not None:
        yield Path(config.seed).absolute()
    for root, folders, files in os.walk(manifest.parent):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in _SKIPPED_FOLDERS]
        yield from (Path(root) / name for name in files if name.endswith(".py"))


def look(paths: Iterable[Path]) -> Seen:
    """Modification times; files that are not there are left out."""
    seen: Seen = {}
    for path in paths:
        try:
            seen[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return seen


def differences(before: Mapping[Path, int], now: Mapping[Path, int]) -> set[Path]:
    """Files that came, went or changed."""
    return {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
