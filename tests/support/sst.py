"""SST and its platform, in a folder of the cache, to check the types of deploy/sst.

`sst install` wants Pulumi and Bun from GitHub. So Bun comes from npm, and a stand-in answers for
the version of Pulumi, which types do not need. The platform takes 424 MB.

`python -m tests.support.sst` installs it; `make test-tools` runs it before Pylon's libraries are
there, so this module imports only the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

SHIPPED: Final = Path(__file__).parent.parent.parent / "deploy" / "sst"
BUN: Final = "@oven/bun-linux-x64@1.2.1"
PULUMI: Final = "v3.215.0"
_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylon-tests"
_STEP_S: Final = 500


class UnavailableError(Exception):
    """SST cannot be installed here; the text says why."""


def install() -> Path:
    """The folder in which `tsc` can check a configuration.

    Raises:
        UnavailableError: npm is missing, or a step failed.
    """
    if shutil.which("npm") is None:
        raise UnavailableError("npm is not installed")
    wanted = json.loads((SHIPPED / "package.json").read_text())["devDependencies"]
    made = _CACHE / f"sst-{wanted['sst']}-typescript-{wanted['typescript']}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "sst.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            for name in ("package.json", "tsconfig.json", "sst.config.ts"):
                shutil.copy(SHIPPED / name, made)
            _install(made)
            (made / "complete").touch()
    return made


def _install(folder: Path) -> None:
    programs = folder / "home" / ".config" / "sst" / "bin"
    programs.mkdir(parents=True)
    pulumi = programs / "pulumi"
    pulumi.write_text(f"#!/bin/sh\necho {PULUMI}\n")
    pulumi.chmod(0o755)
    _run(folder, ["npm", "install", "--no-fund", "--no-audit", BUN], {})
    shutil.copy(folder / "node_modules" / "@oven" / "bun-linux-x64" / "bin" / "bun", programs)
    npmrc = Path.home() / ".npmrc"
    _run(folder, ["npx", "sst", "install"], {
        "HOME": str(folder / "home"), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "SST_STAGE": "test", **({"NPM_CONFIG_USERCONFIG": str(npmrc)} if npmrc.exists() else {}),
    })


def _run(folder: Path, command: list[str], env: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True,
        timeout=_STEP_S, check=False,
    )
    if done.returncode:
        raise UnavailableError(f"{' '.join(command)}: {(done.stderr or done.stdout)[-300:]}")


def type_errors(folder: Path, config: str) -> list[str]:
    """What `tsc` finds in a configuration. Errors within SST's own files are not ours."""
    (folder / "sst.config.ts").write_text(config)
    done = subprocess.run(
        ["npx", "tsc", "--noEmit", "--project", "tsconfig.json", "--pretty", "false"], cwd=folder,
        capture_output=True, text=True, timeout=_STEP_S, check=False,
    )
    return [line for line in done.stdout.splitlines() if line.startswith("sst.config.ts")]


if __name__ == "__main__":
    try:
        print(install())
    except UnavailableError as error:
        print(f"no SST: {error}", file=sys.stderr)
        sys.exit(1)
