"""`pylonctl logs`: prints the log of the server, filtered, and follows it.

The log is the file of `pylonctl start --detach` beside the database, or the journal of the systemd
unit, or what comes on standard input. Lines of JSON are shown for people, with colours on a
terminal only; `--json` prints them as they are. Rotated files are read too, and a rotation is
followed. Lines that are not JSON belong to no level, role or event: a filter leaves them out.

`read_log_lines` and `log_source` are for `pylonctl support-bundle`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from pylon import limits
from pylon.cli.output import json_flag, wants_json
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import NS_PER_S, SystemClock
from pylon.config import Config
from pylon.data_dir_lock import log_file_of
from pylon.errors import InvalidData, NotRunning

UNIT: Final = "pylon"
_LEVELS: Final = ("debug", "info", "warning", "error")
_COLOURS: Final = {"debug": "\x1b[2m", "info": "", "warning": "\x1b[33m", "error": "\x1b[31m"}
_DIM, _END = "\x1b[2m", "\x1b[0m"
_POLL_S: Final = 0.2
_AGO: Final = re.compile(r"(\d+)\s*(s|m|h|d)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_SHOWN_FIRST: Final = frozenset({"ts", "level", "event", "role", "worker", "part"})


@dataclass(frozen=True, slots=True)
class LogFilter:
    """The conditions that a line must fulfil to be shown."""

    level: str = "debug"
    role: str | None = None
    event: str | None = None
    request_id: str | None = None
    since_s: float = 0.0

    def takes(self, record: dict[str, Any]) -> bool:
        """Return whether a decoded line is shown."""
        level = str(record.get("level", "info"))
        if level not in _LEVELS or _LEVELS.index(level) < _LEVELS.index(self.level):
            return False
        if self.role is not None and record.get("role") != self.role:
            return False
        if self.event is not None and not _matches(self.event, str(record.get("event", ""))):
            return False
        if self.request_id is not None and self.request_id not in (
            record.get("request_id"), record.get("id"), record.get("request")
        ):
            return False
        return float(record.get("ts", 0.0)) >= self.since_s

    @property
    def takes_all(self) -> bool:
        """Whether lines that are no JSON are shown too."""
        return self == LogFilter()


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Wait for further lines.")
@click.option("-n", "--lines", "count", type=click.IntRange(0), default=200, show_default=True,
              help="How many of the last lines that match.")
@click.option("--level", type=click.Choice(_LEVELS), default="debug", help="This level or worse.")
@click.option("--role", help="Only lines of this role, e.g. http.")
@click.option("--event", help="Only this event, or all below it: child.died, child.*")
@click.option("--request-id", help="Only lines of this request.")
@click.option("--since", help="Only lines since then: 10m, 2h, 1d, or 2026-11-28T12:00.")
@click.option("--unit", default=UNIT, show_default=True, help="The systemd unit.")
@click.option("--file", "path", type=click.Path(path_type=Path), help="A log file; - is stdin.")
@dev_flag
@json_flag
def logs(
    follow: bool, count: int, level: str, role: str | None, event: str | None,
    request_id: str | None, since: str | None, unit: str, path: Path | None, dev: bool,
) -> None:
    """Show the server's log: the journal, or the file of start --detach."""
    wanted = LogFilter(
        level, role, event, request_id,
        0.0 if since is None else since_s(since, SystemClock().wall_ns() / NS_PER_S),
    )
    config = read_settings(dev=dev).config
    lines = read_log_lines(config, path, unit)
    if not follow:
        for line in _last(_filter(lines, wanted), count):
            click.echo(line)
        return
    for line in _last(_filter(lines, wanted), count):
        click.echo(line)
    for line in _filter(_follow(config, path, unit), wanted):
        click.echo(line)
        sys.stdout.flush()


def since_s(text: str, now_s: float) -> float:
    """Return the Unix time that `--since` names.

    Raises:
        InvalidData: it is neither a duration nor a time.
    """
    if (ago := _AGO.fullmatch(text.strip())) is not None:
        return now_s - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]]).total_seconds()
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidData(
            f"--since is {text!r}: give 10m, 2h, 1d, or a time as 2026-11-28T12:00"
        ) from None
    return (at if at.tzinfo else at.astimezone()).astimezone(UTC).timestamp()


def read_log_lines(config: Config, path: Path | None = None, unit: str = UNIT) -> Iterator[str]:
    """Yield the lines of the log that there are, oldest first.

    Raises:
        NotRunning: there is neither a file nor a journal of the unit.
    """
    if path == Path("-"):
        yield from (line.rstrip("\n") for line in sys.stdin)
        return
    path = path or log_file_of(Path(config.db_path))
    if path.is_file():
        older = [path.with_name(f"{path.name}.{n}") for n in range(limits.LOG_FILES_KEPT, 0, -1)]
        for each in (*older, path):
            if each.is_file():
                with each.open(encoding="utf-8", errors="replace") as file:
                    yield from (line.rstrip("\n") for line in file)
        return
    yield from _journal(config, unit, "--no-pager")


def _journal(config: Config, unit: str, *args: str) -> Iterator[str]:
    program = shutil.which("journalctl")
    if program is None:
        raise NotRunning(
            f"there is no log: {log_file_of(Path(config.db_path))} is missing, and journalctl is "
            "not installed", hint="name a file with --file",
        )
    command = [program, "--unit", unit, "--output", "cat", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stdout is not None
        yield from (line.rstrip("\n") for line in process.stdout)


def _follow(config: Config, path: Path | None, unit: str) -> Iterator[str]:
    """Yield lines as they come, from the end of the log on."""
    if path == Path("-"):
        return
    path = path or log_file_of(Path(config.db_path))
    if not path.is_file():
        yield from _journal(config, unit, "--follow", "--lines", "0")
        return
    file = path.open(encoding="utf-8", errors="replace")
    file.seek(0, os.SEEK_END)
    rest = ""
    while True:
        rest += file.read()
        *whole, rest = rest.split("\n")
        yield from whole
        if whole:
            continue
        try:
            is_other = not os.path.samestat(path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            is_other = False  # between the two steps of a rotation
        if is_other:
            # A process that has not noticed yet may write a last line.
            time.sleep(_POLL_S)
            yield from (rest + file.read()).split("\n")[:-1]
            file.close()
            file, rest = path.open(encoding="utf-8", errors="replace"), ""
        else:
            time.sleep(_POLL_S)


def _filter(lines: Iterable[str], wanted: LogFilter) -> Iterator[str]:
    is_colourful = sys.stdout.isatty()
    for line in lines:
        try:
            record = json.loads(re.sub(r"^<\d>", "", line))
        except ValueError:
            record = None
        if not isinstance(record, dict):
            if wanted.takes_all and line:
                yield line
        elif wanted.takes(record):
            yield line if wants_json() else shown(record, is_colourful=is_colourful)


def shown(record: dict[str, Any], *, is_colourful: bool) -> str:
    """Return a line for people."""
    at = datetime.fromtimestamp(float(record.get("ts", 0.0)), UTC).astimezone()
    level = str(record.get("level", ""))
    process = "/".join(str(record[key]) for key in ("role", "worker") if key in record)
    colour, dim, end = (_COLOURS.get(level, ""), _DIM, _END) if is_colourful else ("", "", "")
    keys = " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in record.items() if key not in _SHOWN_FIRST and key != "trace"
    )
    text = (f"{dim}{at:%Y-%m-%d %H:%M:%S}{end} {colour}{level:<7}{end} {process:<10} "
            f"{colour}{record.get('event', '')}{end} {keys}").rstrip()
    return text if "trace" not in record else f"{text}\n{str(record['trace']).rstrip()}"


def _matches(wanted: str, event: str) -> bool:
    if wanted.endswith("*"):
        return event.startswith(wanted[:-1])
    return event == wanted


def _last(lines: Iterable[str], count: int) -> list[str]:
    from collections import deque

    return list(deque(lines, maxlen=count))
