"""The checkers of the files in `deploy/`, in a virtual environment of their own.

`install` makes it from `deploy/checkers.lock`, once (a minute, 400 MB, in the cache): checkov fixes
the versions of libraries that the other tests use in newer ones. `run_checker` runs one of them.

`python -m tests.support.deploy_checkers` installs them. `make test-tools` runs it before Pylon's
libraries are there, so this module imports only the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

LOCK: Final = Path(__file__).parent.parent.parent / "deploy" / "checkers.lock"
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylon-tests"
_STEP_S: Final = 600


class UnavailableError(Exception):
    """The checkers cannot be installed here; the text says why."""


def install() -> Path:
    """The folder of the programs.

    Raises:
        UnavailableError: pip could not install them.
    """
    digest = hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()[:12]
    made = _CACHE / f"deploy-checkers-{digest}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "deploy-checkers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            venv.create(made, with_pip=True)
            done = subprocess.run(
                [made / "bin" / "pip", "install", "-q", "--no-deps", "-r", str(LOCK)],
                capture_output=True, text=True, timeout=_STEP_S, check=False,
            )
            if done.returncode:
                raise UnavailableError(f"pip could not install them: {done.stderr[-300:]}")
            (made / "complete").touch()
    return made / "bin"


def run_checker(programs: Path, name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a checker. It gets no settings of the user, and checkov no network."""
    env = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "HOME": "/nonexistent",
           "LANG": "C.UTF-8", "BC_SKIP_MAPPING": "TRUE"}
    return subprocess.run(
        [str(programs / name), *words], env=env, capture_output=True, text=True, timeout=300,
        check=False,
    )


if __name__ == "__main__":
    try:
        print(install())
    except UnavailableError as error:
        print(f"no checkers of deploy/: {error}", file=sys.stderr)
        sys.exit(1)
