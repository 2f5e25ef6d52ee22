"""Program check: has the program on disk check its settings before a restart executes it.

The program may be another version than the one that runs, so the check runs in a process of its
own: `pylonctl check-config` with the flags of the start. Called by `pylonctl start`, for
`supervisor.generations`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from pylon.errors import ReloadRefused
from pylon.settings import ENV_FILE_NAME

_TIMEOUT_S: Final = 120.0  # it may wait for a database


def check_program(flags: Mapping[str, str | None], env_file: str | None, *, dev: bool) -> None:
    """Run the check and wait for it.

    Args:
        flags: of the start, by the variable that each sets.
        env_file: the one that was named, if any.

    Raises:
        ReloadRefused: the program does not run, or refuses its settings.
    """
    environ = {**os.environ, **{k: v for k, v in flags.items() if v is not None}}
    if env_file is not None:
        environ[ENV_FILE_NAME] = env_file
    command = [sys.executable, "-m", "pylon.cli.main", "check-config", "--no-ports", "--json"]
    try:
        done = subprocess.run(
            [*command, *(["--dev"] if dev else [])], env=environ, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False,
        )
    except subprocess.TimeoutExpired as ex:
        raise ReloadRefused(
            f"pylonctl check-config of the program on disk takes longer than {_TIMEOUT_S:g} s"
        ) from ex
    if done.returncode == 0:
        return
    try:
        problems = [str(line) for line in json.loads(done.stdout)["problems"]]
    except (ValueError, KeyError, TypeError):  # it did not come so far
        problems = (done.stderr.strip().splitlines() or ["no output"])[-1:]
        problems = [f"The program on disk does not run (exit {done.returncode}): {problems[0]}"]
    more = f" (and {len(problems) - 1} more: pylonctl check-config lists them)"
    raise ReloadRefused(problems[0] + (more if len(problems) > 1 else ""))
