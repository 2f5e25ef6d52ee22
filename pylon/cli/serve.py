"""Server start: runs a server in this process (`serve`) or in a process of its own.

`serve` imports `supervisor` when it is called. No other module of `pylon` imports it. Then it forks
the template process, which so has what the supervisor needs, and imports the rest while the
supervisor starts. Called by `pylonctl start` and `pylonctl dev --once`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import click

from pylon.cli.announce import announce, announce_when_ready, is_ready
from pylon.cli.output import note, wants_json
from pylon.config import Loaded
from pylon.data_dir import data_dir_problems, data_dir_warnings, open_private, refuse_root
from pylon.data_dir_lock import log_file_of
from pylon.errors import StartRefused
from pylon.startup import load_checked, start_warnings
from pylon.storage.factory import import_backend

if TYPE_CHECKING:
    from supervisor.template import Template

_POLL_S = 0.05


def serve(
    loaded: Loaded, reread: Callable[[], Loaded] | None = None,
    be_template: Callable[[int, int], None] | None = None,
    check_program: Callable[[], None] | None = None,
) -> int:
    """Run the supervisor in this process. Return its exit code.

    Args:
        reread: reads the settings again, for a reload.
        be_template: what a template process does that is forked from this process. None: the
            supervisor executes its template.
        check_program: checks the program on disk before a restart.

    Raises:
        StartRefused: by the checks before the start, or by the supervisor.
    """
    if be_template is None:
        return _serve(loaded, reread, check_program)
    import supervisor.main  # noqa: F401  (the template has what was imported before the fork)
    from supervisor.template import fork_template

    import_backend(loaded.config)
    template = fork_template(be_template)
    try:
        return _serve(loaded, reread, check_program, template)
    finally:
        template.stop()


def _serve(
    loaded: Loaded, reread: Callable[[], Loaded] | None,
    check_program: Callable[[], None] | None, template: Template | None = None,
) -> int:
    load_checked(loaded)
    from supervisor.main import run

    def begin(loaded: Loaded) -> None:
        if loaded.config.dev_mode or wants_json():
            Thread(
                target=announce_when_ready, args=(loaded.config, load_checked(loaded), os.getpid()),
                name="announce", daemon=True,
            ).start()

    return run(loaded, template, reread, begin, check_program)


def start_detached(loaded: Loaded, arguments: list[str]) -> int:
    """Start the server as a process of its own and wait until it is ready. Return the exit code.

    The server writes its log to `<db_path>.log`.

    Args:
        arguments: of a `pylonctl start` that reads the settings `loaded` itself.
    """
    app = load_checked(loaded)
    for warning in (*start_warnings(loaded, app), *data_dir_warnings(loaded.config)):
        note(f"warning: {warning}")
    for problem in data_dir_problems(loaded.config):
        raise StartRefused(problem)
    refuse_root(loaded.config)
    log_path = log_file_of(Path(loaded.config.db_path))
    log_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(_open_log(log_path), "ab") as log:
        started_at = log.tell()
        child = subprocess.Popen(
            [sys.executable, "-m", "pylon.cli.main", "start", *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )
    while not is_ready(loaded.config, child.pid):
        code = child.poll()
        if code is not None:
            with log_path.open("rb") as log:
                log.seek(started_at)
                click.echo(log.read().decode(errors="replace"), nl=False, err=True)
            return code or 1
        time.sleep(_POLL_S)
    announce(loaded.config, app)
    note(f"runs as pid {child.pid}; log in {log_path}; end it with: pylonctl stop")
    return 0


def _open_log(path: Path) -> int:
    try:
        return open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    except OSError as ex:
        raise StartRefused(f"The log {path} cannot be written to: {ex.strerror or ex}") from ex
