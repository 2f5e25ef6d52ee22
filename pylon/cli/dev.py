"""`pylonctl dev`: starts the server with dev defaults, and reloads it when the app changes.

It runs `pylonctl start --dev` as a child. Ten times a second it compares the modification times of
the manifest, the seed, the `.env` files and the Python files of the app's folder. After a change
it checks the app and sends SIGHUP to the child. The child drains and begins anew within its
process. Its ports stay open and its template process stays loaded, so it imports only the app.

Invariants: after a change that is not valid this process prints the problem, and the running server
continues. The problem is in a file of its runtime folder (`pylon.dev_problems`), until a change
that is valid; the app's pages show it.
The server does not outlive this process. Ctrl-C reaches the server once, through this process: the
child has its own session, because two signals would cut its drain short.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType

import click

from pylon.bus.runtime import Runtime
from pylon.cli.output import CONFIG, failure_lines, json_flag, note, wants_json
from pylon.cli.running import Running, find_running
from pylon.cli.serve import serve
from pylon.cli.settings import chosen_env_file, env_file_flag, env_files, read_settings
from pylon.config import Config, Loaded
from pylon.dev_problems import DevProblem, problems_of, write_problems
from pylon.errors import StartRefused
from pylon.realtime.app_module import try_app_module
from pylon.runtime.parent_death import die_with_parent
from pylon.settings import ENV_FILE_NAME
from pylon.startup import load_checked

_POLL_S = 0.1
_SCAN_SHARE = 0.05  # the largest share of time for scans, if the app's folder has many files
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "venv", "build", "dist"})

ModificationTimes = dict[Path, int]  # modification time in ns of each watched file


@click.command()
@click.option("--port", type=int, help="Sets PYLON_PORT.")
@click.option("--once", is_flag=True, help="Do not watch for changes.")
@env_file_flag
@json_flag
@click.pass_context
def dev(ctx: click.Context, port: int | None, once: bool) -> None:
    """Serve the app of this folder with dev defaults; restart when it changes."""
    flags = {"PYLON_PORT": None if port is None else str(port)}
    if once:
        read = partial(_read, flags, chosen_env_file(os.environ))
        ctx.exit(serve(read(), read))
    ctx.exit(_Watch(_command(port)).run())


def _read(flags: Mapping[str, str | None], env_file: str | None) -> Loaded:
    """Read the settings; for a reload in another thread, which does not know the flags."""
    chosen = {} if env_file is None else {ENV_FILE_NAME: env_file}
    return read_settings(dev=True, flags=flags, environ={**os.environ, **chosen})


def _command(port: int | None) -> list[str]:
    command = [sys.executable, "-m", "pylon.cli.main", "start", "--dev"]
    if port is not None:
        command += ["--port", str(port)]
    env_file = chosen_env_file(os.environ)
    if env_file is not None:
        command += ["--env-file", env_file]
    if wants_json():
        command.append("--json")
    return command


class _Watch:
    """One `pylonctl dev`: runs the child, and reloads it after changes of files."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._dotenv: ModificationTimes = {}
        self._settings: Config | None = None
        self._serving: Config | None = None  # the last settings that were valid
        self._problems: tuple[DevProblem, ...] = ()  # of the saved app
        self._scan_s = 0.0  # duration of the last scan

    def run(self) -> int:
        """Run until a signal ends it or the first start fails. Return the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        known = self._scan()
        self._spawn()
        self._write_types()
        started = False
        while True:
            code = self._child.poll() if self._child is not None else None
            if self._ending and (self._child is None or code is not None):
                return code or 0
            if code == 0 or (code is not None and not started):
                return code  # `pylonctl stop` ended the server, or the first start failed
            if code is not None:
                self._child = None
                note(f"the server ended with code {code}; waiting for a change")
            time.sleep(max(_POLL_S, self._scan_s / _SCAN_SHARE))
            now = self._scan()
            changed = differences(known, now)
            if not changed or self._ending:
                self._keep_problems()
                continue
            started = True
            known = now
            note(f"changed: {', '.join(sorted(path.name for path in changed))}")
            refusal = app_refusal()
            self._tell_problems(() if refusal is None else problems_of(refusal))
            if refusal is None:
                self._reload()

    def _scan(self) -> ModificationTimes:
        """Return the modification times. Read the settings again after a `.env` file changed."""
        started_s = time.monotonic()
        dotenv = modification_times(env_files(dev=True, environ=os.environ))
        if self._settings is None or dotenv != self._dotenv:
            self._dotenv, self._settings = dotenv, _settings()
            self._serving = self._settings or self._serving
        known = modification_times(watched_files(Path.cwd(), self._settings))
        self._scan_s = time.monotonic() - started_s
        return known

    def _write_types(self) -> None:
        """Write the types at the start. A manifest with errors is reported by the server."""
        if self._settings is not None:
            with suppress(StartRefused):
                _write_types(self._settings)

    def _tell_problems(self, problems: tuple[DevProblem, ...]) -> None:
        """Tell the running server, if there is one, which problems the saved app has."""
        self._problems = problems
        path = self._problems_path()
        if path is None:
            return
        with suppress(FileNotFoundError):  # the server ends, or begins anew with another folder
            if problems:
                write_problems(path, problems)
            else:
                path.unlink()

    def _keep_problems(self) -> None:
        """Tell a server that has begun anew since."""
        if self._problems:
            path = self._problems_path()
            if path is not None and not path.exists():
                self._tell_problems(self._problems)

    def _problems_path(self) -> Path | None:
        running = None if self._serving is None else find_running(self._serving)
        if not isinstance(running, Running):
            return None
        return Runtime(Path(running.runtime_dir)).dev_problems

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
    """Return the current settings; None while they are not valid."""
    try:
        return read_settings(dev=True).config
    except StartRefused:
        return None


def app_refusal() -> StartRefused | None:
    """Return why settings, manifest or app are not valid, and print it; None: they are valid."""
    try:
        loaded = read_settings(dev=True)
        load_checked(loaded)
        try_app_module(loaded.config, in_fork=True)
        _write_types(loaded.config)
    except StartRefused as ex:
        for line in failure_lines(ex):
            note(line)
        note(f"not restarted (a start would end with code {CONFIG})")
        return ex
    return None


def _write_types(config: Config) -> None:
    if config.codegen is not None:
        from pylon.cli.codegen import write_targets  # few apps have the setting

        write_targets(config)


def watched_files(folder: Path, config: Config | None) -> Iterable[Path]:
    """Yield the files whose change causes a reload."""
    yield from env_files(dev=True, environ=os.environ, folder=folder)
    if config is None:
        return
    manifest = Path(config.manifest).absolute()
    yield manifest
    if config.seed is not None:
        yield Path(config.seed).absolute()
    for root, folders, files in os.walk(manifest.parent):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in _SKIPPED_FOLDERS]
        yield from (Path(root) / name for name in files if name.endswith(".py"))


def modification_times(paths: Iterable[Path]) -> ModificationTimes:
    """Return the modification times in ns; a missing file has no entry."""
    known: ModificationTimes = {}
    for path in paths:
        try:
            known[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return known


def differences(before: Mapping[Path, int], now: Mapping[Path, int]) -> set[Path]:
    """Return the files that were added, removed or modified."""
    return {path for path in before.keys() | now.keys() if before.get(path) != now.get(path)}
