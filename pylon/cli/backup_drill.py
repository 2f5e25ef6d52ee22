"""`pylonctl backup drill`: restores the newest backup, and one moment of it, into a scratch place.

It is the quarterly test in one command. It changes nothing of the server. Each step is timed and
noted; the first that fails ends the drill. The report is written as JSON and as text, named by its
date, also when a step has failed.

Called by `pylon.cli.backup`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from pylon import __version__
from pylon.archive.interface import Archive
from pylon.cli.archives import describe_target, point_in_time, text_of
from pylon.cli.running import Running, find_running
from pylon.clock import Clock
from pylon.config import Config
from pylon.errors import PylonError
from pylon.storage.backups import BackupManager
from pylon.storage.bundle.contents import read_contents
from pylon.storage.bundle.point_in_time import PointInTime
from pylon.storage.shipping.catalogue import read_catalogue
from pylon.storage.shipping.names import show_time
from pylon.storage.shipping.target import RestorePoint

_ANSWER_S: Final = 5.0

T = TypeVar("T")


@dataclass(slots=True)
class DrillReport:
    """The findings of a drill. `ok`: every step has passed."""

    source: str
    at: str
    version: str = __version__
    ok: bool = False
    steps: list[dict[str, Any]] = field(default_factory=list)
    newest_commit_at: str = ""
    seq: int = 0
    rows: int = 0
    size_bytes: int = 0
    secret_key: bool = False
    running_seq: int | None = None  # head of the server on this machine; None: none runs
    restore_s: float = 0.0
    error: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        return found

    def to_text(self) -> str:
        """Return the report for people."""
        lines = [
            f"Backup drill of {self.at}: {'passed' if self.ok else 'FAILED'}",
            f"source:        {self.source}", f"Pylon:         {self.version}",
        ]
        lines += [
            f"{'ok  ' if step['ok'] else 'FAIL'}  {step['step']} ({step['duration_s']:.1f} s)"
            f"{': ' + step['detail'] if step['detail'] else ''}" for step in self.steps
        ]
        if self.newest_commit_at:
            lines.append(f"newest commit: {self.newest_commit_at}, seq {self.seq}")
        if self.running_seq is not None:
            lines.append(f"server's head: seq {self.running_seq}")
        lines += [
            f"restored:      {self.rows} rows, {self.size_bytes} bytes, in {self.restore_s:.1f} s",
            f"secret key:    {'in the backup' if self.secret_key else 'NOT in the backup'}",
        ]
        if self.error:
            lines.append(f"error:         {self.error}")
        return "\n".join(lines) + "\n"


class _Steps:
    """Runs and notes the steps."""

    def __init__(self, report: DrillReport, clock: Clock) -> None:
        self._report = report
        self._clock = clock

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Note a step with its time; the block may give a detail."""
        details: list[str] = []
        started_s = self._clock.monotonic_s()
        ok = False
        try:
            yield details.append
            ok = True
        finally:
            self._report.steps.append({
                "step": name, "ok": ok, "detail": "; ".join(details),
                "duration_s": round(self._clock.monotonic_s() - started_s, 3),
            })


def drill_archive(
    config: Config, archive: Archive, backups: BackupManager, identity: Path | None, clock: Clock
) -> DrillReport:
    """Drill a continuous backup."""
    report = _begin(config, archive.place, clock)
    steps = _Steps(report, clock)

    def run() -> None:
        with steps.step("list the archive") as detail:
            generations = read_catalogue(archive)
            count = sum(len(each.segments) for each in generations)
            detail(f"{len(generations)} generations, {count} segments")
        started_s = clock.monotonic_s()
        with steps.step("bring back the newest commit") as detail, point_in_time(
            config, archive, RestorePoint(), identity, allow_gap=False
        ) as made:
            detail(describe_target(made))
            report.newest_commit_at, report.seq = show_time(made.target.at_ms), made.seq
            with steps.step("restore it into a scratch place, and compare"):
                _restore(report, backups, made.bundle)
            report.restore_s = round(clock.monotonic_s() - started_s, 3)
            middle_ms = (made.target.snapshot.name.at_ms + made.target.at_ms) // 2
        with steps.step(f"bring back {show_time(middle_ms)}") as detail, point_in_time(
            config, archive, RestorePoint(at_ms=middle_ms), identity, allow_gap=False
        ) as earlier:
            detail(describe_target(earlier))
            _check_earlier(earlier, middle_ms)

    return _finish(report, run)


def drill_bundle(
    config: Config, source: Path, plain: Path, backups: BackupManager, clock: Clock
) -> DrillReport:
    """Drill a bundle. `plain`: the bundle in clear."""
    report = _begin(config, str(source), clock)
    steps = _Steps(report, clock)

    def run() -> None:
        started_s = clock.monotonic_s()
        with steps.step("restore it into a scratch place, and compare"):
            _restore(report, backups, plain)
        contents = read_contents(plain)
        report.newest_commit_at, report.seq = contents.created_at, contents.seq
        report.restore_s = round(clock.monotonic_s() - started_s, 3)

    return _finish(report, run)


def write_report(report: DrillReport, folder: Path) -> Path:
    """Write the report into a folder, as JSON and as text. Return the path of the text.

    Raises:
        OSError
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = report.at.replace(":", "").replace("-", "").partition(".")[0]
    text = folder / f"drill-{stamp}Z.txt"
    text.write_text(report.to_text())
    body = msgspec.json.format(msgspec.json.encode(report.to_json()), indent=2)
    text.with_suffix(".json").write_bytes(body + b"\n")
    return text


def _begin(config: Config, source: str, clock: Clock) -> DrillReport:
    report = DrillReport(source, show_time(clock.wall_ns() // 1_000_000))
    running = find_running(config) if config.database_url is None else None
    if isinstance(running, Running):
        try:
            report.running_seq = int(running.control(_ANSWER_S).ask("status")["head_seq"])
        except PylonError:  # it is ending; the drill needs no server
            report.running_seq = None
    return report


def _restore(report: DrillReport, backups: BackupManager, bundle: Path) -> None:
    verified = backups.verify(bundle, deep=True)
    report.rows, report.size_bytes = verified.rows, verified.size_bytes
    report.secret_key = verified.secret_key


def _check_earlier(made: PointInTime, middle_ms: int) -> None:
    if made.target.at_ms > middle_ms:
        raise AssertionError("a commit after the moment was brought back")


def _finish(report: DrillReport, run: Callable[[], None]) -> DrillReport:
    try:
        run()
        report.ok = True
    except (PylonError, OSError) as ex:
        report.error = text_of(ex)
    return report
