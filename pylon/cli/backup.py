"""`pylonctl backup DIR` and `pylonctl backup verify DIR`: make and check backup bundles.

This process always makes the copy. So DIR can be any folder that the operator may write to, and
belongs to them, whatever sandbox the server runs in. `pylonctl` reports its progress to a running
server (`supervisor.backups`), which counts backups and cancels a copy when it drains.
Without a server `pylonctl` holds the lock of the data directory during the copy. On PostgreSQL no
server is needed or disturbed; a server of this machine is told of the finished backup.

Invariants: no folder with a temporary name stays after an error, Ctrl-C or SIGTERM. `pylonctl`
reports a backup as made only after it has checked the bundle under its final name.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import click

from pylon.cli.output import json_flag, note, result, wants_json
from pylon.cli.running import require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import NS_PER_S, SystemClock
from pylon.config import Config
from pylon.control import ControlDialogue
from pylon.data_dir_lock import DataDirLocked, lock_data_dir
from pylon.errors import BackupRefused, NotRunning, Unavailable
from pylon.storage.backend import Backend
from pylon.storage.backups import BackupManager, BackupRecord, BackupReport
from pylon.storage.bundle.contents import SQLITE, read_contents
from pylon.storage.bundle.record import write_record
from pylon.storage.factory import open_dump_backups, open_store, open_store_at

_clock = SystemClock()
_PROGRESS_EVERY_S: Final = 0.2


@click.command()
@click.argument("words", nargs=-1, required=True, metavar="DIR | verify DIR")
@click.option(
    "--deep", is_flag=True,
    help="verify: also restore a bundle of PostgreSQL into a database of its own, on the server of "
    "DATABASE_URL, and compare every table.",
)
@dev_flag
@json_flag
def backup(words: tuple[str, ...], deep: bool, dev: bool) -> None:
    """Write a backup bundle to DIR, also while the server runs; or verify the one in DIR."""
    if words[0] == "verify" and len(words) == 2:
        source = Path(words[1])
        report = _backups_for(source, deep=deep, dev=dev).verify(source, deep=deep)
        result(report.to_json(), f"{words[1]} is sound: seq {report.seq}, made {report.created_at}")
        return
    if deep:
        raise click.UsageError("--deep is of: verify FOLDER --deep")
    if len(words) != 1:
        raise click.UsageError("give one folder, or: verify FOLDER")
    target = Path(words[0]).absolute()
    with _end_by_signals():
        made = _make_backup(read_settings(dev=dev).config, target)
    result(made.to_json(), f"{target}: seq {made.seq}, {made.size_bytes} bytes")


def _backups_for(source: Path, *, deep: bool, dev: bool) -> BackupManager:
    """Return the manager that can check a bundle. Only the deep check of one of PostgreSQL needs a
    server, and so the settings.

    Raises:
        BackupRefused: no server is named.
    """
    if not source.is_dir() or read_contents(source).store == SQLITE:
        return open_store_at(source).backups
    if not deep:
        return open_dump_backups()
    config = read_settings(dev=dev).config
    if config.database_url is None:
        raise BackupRefused("--deep restores the bundle on a server: set DATABASE_URL")
    return open_store(config).backups


def _make_backup(config: Config, target: Path) -> BackupReport:
    store, path = open_store(config), Path(config.db_path).absolute()
    if not store.backups.holds_log:
        return _make_beside_server(config, store, target)
    if config.in_memory:
        raise BackupRefused("PYLON_IN_MEMORY is on: there is no file to back up")
    if not store.exists():
        raise BackupRefused(f"there is no database at {path} (PYLON_DB_PATH)")
    try:
        with lock_data_dir(path):
            report = store.backups.create(target, Path(config.manifest).absolute())
            _record(store, report)
            return report
    except DataDirLocked:
        dialogue = require_running(config).control().open_dialogue("backup")
    with dialogue:
        return _Copy(dialogue, store).make(target)


def _make_beside_server(config: Config, store: Backend, target: Path) -> BackupReport:
    """Make the bundle of a store that needs no server of Pylon. A server that runs here is told
    once it is made, for its metrics."""
    told_s = _clock.monotonic_s()

    def tell(remaining: int, tables: int) -> None:
        nonlocal told_s
        if _clock.monotonic_s() - told_s >= _PROGRESS_EVERY_S * 5 and not wants_json():
            told_s = _clock.monotonic_s()
            note(f"{remaining} of {tables} tables left")

    report = store.backups.create(target, Path(config.manifest).absolute(), tell)
    try:
        with require_running(config).control().open_dialogue("backup") as dialogue:
            dialogue.receive_line()
            dialogue.send_line(copied=True)
            dialogue.send_line(report=report.to_json())
            dialogue.receive_line()
    except (NotRunning, Unavailable):
        if Path(config.db_path).parent.is_dir():
            _record(store, report)
    return report


class _Copy:
    """Copies the database of a running server, in a dialogue with its supervisor."""

    def __init__(self, dialogue: ControlDialogue, store: Backend) -> None:
        self._dialogue = dialogue
        self._store = store
        self._printed_s = _clock.monotonic_s()

    def make(self, target: Path) -> BackupReport:
        """Make the bundle and return the report.

        Raises:
            Unavailable: another backup runs, or the server cancels this one.
        """
        manifest = Path(self._dialogue.receive_line()["manifest"])
        report = self._store.backups.create(
            target, manifest, self._print_progress, self._report_copied
        )
        try:
            self._dialogue.send_line(report=report.to_json())
            self._dialogue.receive_line()
        except NotRunning:  # the server has ended; the bundle is complete without it
            _record(self._store, report)
        return report

    def _print_progress(self, remaining: int, pages: int) -> None:
        why = self._reason_to_cancel()
        if why is not None:
            raise Unavailable(why)
        now_s = _clock.monotonic_s()
        if now_s - self._printed_s >= _PROGRESS_EVERY_S and not wants_json():
            self._printed_s = now_s
            note(f"{remaining} of {pages} pages left")

    def _reason_to_cancel(self) -> str | None:
        try:
            line = self._dialogue.poll_line()
        except NotRunning:  # the server was killed; our snapshot of its database stays valid
            return None
        if line is None or not line.get("cancel"):
            return None
        return str(line.get("why", "The server cancelled the backup"))

    def _report_copied(self) -> None:
        try:
            self._dialogue.send_line(copied=True)
        except NotRunning:
            return  # the copy is complete, and no supervisor waits for the report


def _record(store: Backend, report: BackupReport) -> None:
    record = BackupRecord(
        _clock.wall_ns() // NS_PER_S, report.duration_s, report.target, report.seq,
        report.size_bytes,
    )
    try:
        write_record(store.data_path, record)
    except OSError as ex:
        note(f"warning: the backup is good, but the server will not know of it: {ex}")


@contextmanager
def _end_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as Ctrl-C does, so that it removes partial files."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
