"""TypeScript and pyright from npm, in a folder of the cache, to check generated types.

`python -m tests.support.type_checkers` installs them; `make test-tools` runs it before Pylon's
libraries are there, so this module imports only the standard library.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

TYPESCRIPT: Final = "typescript@5.9.3"
PYRIGHT: Final = "pyright@1.1.414"
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylon-tests"
_STEP_S: Final = 280


class UnavailableError(Exception):
    """The programs cannot be installed here; the text says why."""


def install() -> Path:
    """The folder with the programs.

    Raises:
        UnavailableError: npm is missing, or a step failed.
    """
    if shutil.which("npm") is None:
        raise UnavailableError("npm is not installed")
    made = _CACHE / f"{TYPESCRIPT}-{PYRIGHT}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "type_checkers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            done = subprocess.run(
                ["npm", "install", "--no-fund", "--no-audit", TYPESCRIPT, PYRIGHT], cwd=made,
                capture_output=True, text=True, timeout=_STEP_S, check=False,
            )
            if done.returncode:
                raise UnavailableError(f"npm install: {(done.stderr or done.stdout)[-300:]}")
            (made / "complete").touch()
    return made


def run(program: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `tsc` or `pyright` in a folder.

    Raises:
        UnavailableError: see `install`.
    """
    binary = install() / "node_modules" / ".bin" / program
    return subprocess.run(
        [str(binary), *arguments], cwd=folder, capture_output=True, text=True, timeout=_STEP_S,
        check=False,
    )


if __name__ == "__main__":
    try:
        print(f"type checkers: {install()}")
    except UnavailableError as ex:
        print(f"type checkers: {ex}", file=sys.stderr)
        sys.exit(1)
