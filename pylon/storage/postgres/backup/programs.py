"""Programs of PostgreSQL: finds `pg_dump` and `pg_restore`, and runs them.

`pg_dump` refuses a server that is newer than itself, so the program must have the server's major
version or a later one; the lowest such version is used, since an older server may not understand
the dump of a newer program. Programs are looked for in PATH, and where Debian installs every
version.

Invariants: the URL's password is in the environment of the program, never in its arguments. A
program that the caller gives up is ended. Called by the modules of this package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from psycopg import pq

from pylon.errors import BackupInvalid, BackupRefused
from pylon.storage.postgres.connect import application_name

_DEBIAN: Final = Path("/usr/lib/postgresql")
_VERSION: Final = re.compile(r"\) (\d+)")
_POLL_S: Final = 0.1
_END_S: Final = 5.0
_ERROR_LINES: Final = 3


def find_program(name: str, server_version: int, folders: Sequence[Path] | None = None) -> Path:
    """Return the path of a program that can work with a server.

    Args:
        server_version: for example 150018.
        folders: where to look; None: PATH and Debian's folders.

    Raises:
        BackupRefused: there is none; the text names the package that has it.
    """
    major = server_version // 10_000
    found = dict(_list_programs(name, folders))
    usable = [version for version in found if version >= major]
    if usable:
        return found[min(usable)]
    remedy = f"install the package postgresql-client-{major} (Debian: apt-get install it)"
    if not found:
        raise BackupRefused(f"{name} is not installed", hint=remedy)
    raise BackupRefused(
        f"{found[max(found)]} is of PostgreSQL {max(found)}, older than the server's {major}",
        hint=remedy,
    )


def _list_programs(name: str, folders: Sequence[Path] | None) -> Iterator[tuple[int, Path]]:
    if folders is None:
        folders = [
            *sorted(_DEBIAN.glob("*/bin")),
            *(Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder),
        ]
    seen: set[int] = set()
    for folder in folders:
        path = shutil.which(name, path=str(folder))
        if path is None:
            continue
        with suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run(
                [path, "--version"], capture_output=True, text=True, check=True, timeout=10
            ).stdout
            version = _VERSION.search(text)
            if version is not None and int(version[1]) not in seen:
                seen.add(int(version[1]))
                yield int(version[1]), Path(path)


def libpq_environment(url: str, part: str) -> dict[str, str]:
    """Return the environment in which a program of PostgreSQL connects to the URL."""
    environment = dict(os.environ)
    for option in pq.Conninfo.parse(url.encode()):
        if option.envvar is not None and option.val is not None:
            environment[option.envvar.decode()] = option.val.decode()
    environment["PGAPPNAME"] = application_name(part, "")
    environment["LC_ALL"] = "C"  # of messages, and of what `on_line` sees
    return environment


def run_program(
    args: Sequence[str | Path], environment: dict[str, str],
    on_line: Callable[[str], None] = lambda line: None,
    on_wait: Callable[[], None] = lambda: None,
) -> None:
    """Run a program until it ends.

    Args:
        on_line: called with each line of its stderr.
        on_wait: called now and then; what it raises ends the program.

    Raises:
        BackupInvalid: it failed; the text has its last lines.
        OSError: it cannot be started.
    """
    process = subprocess.Popen(
        args, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    text = b""
    lines: list[str] = []
    try:
        while True:
            is_ended = process.poll() is not None
            text += process.stderr.read() or b""
            *whole, text = text.split(b"\n")
            for line in whole:
                lines.append(line.decode(errors="replace"))
                on_line(lines[-1])
            if is_ended:
                break
            on_wait()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        process.stderr.close()
    if process.returncode != 0:
        found = [line for line in lines if "error:" in line or "detail:" in line]
        reason = "; ".join((found or lines)[:_ERROR_LINES]) or f"exit code {process.returncode}"
        raise BackupInvalid(reason)


def read_program(args: Sequence[str | Path]) -> str:
    """Run a program that connects to nothing, and return what it prints.

    Raises:
        BackupInvalid: it failed; the text has its reason.
    """
    done = subprocess.run(
        args, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        env={**os.environ, "LC_ALL": "C"},
    )
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        raise BackupInvalid(text.splitlines()[0] if text else f"exit code {done.returncode}")
    return done.stdout.decode(errors="replace")
