"""`pylonctl backup DIR`: makes backup bundles. `pylon.cli.backup_verbs` has the other verbs.

This process always makes the copy. So DIR can be any folder that the operator may write to, and
belongs to them, whatever sandbox the server runs in. `pylonctl` reports its progress to a running
server (`supervisor.backups`), which counts backups and cancels a copy when it drains.
Without a server `pylonctl` holds the lock of the data directory during the copy. On PostgreSQL no
server is needed or disturbed; a server of this machine is told of the finished backup.

With `--encrypt` the bundle in clear lies in a private folder of the data directory until it is
encrypted (`pylon.storage.bundle.encrypted`).

Invariants: no folder with a temporary name stays after an error, Ctrl-C or SIGTERM. `pylonctl`
reports a backup as made only after it has checked the bundle under its final name.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

import click

from pylon.app_manifest import manifest_json
from pylon.auth.secret_key import key_file_of
from pylon.cli.archives import tell_hook, text_of
from pylon.cli.backup_verbs import VerbOptions, drill, list_archive, prune, verify
from pylon.cli.bundle_options import opening_options, read_encryption
from pylon.cli.output import json_flag, note, result, wants_json
from pylon.cli.running import require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import NS_PER_S, SystemClock
from pylon.config import Config
from pylon.control import ControlDialogue
from pylon.data_dir_lock import DataDirLocked, lock_data_dir
from pylon.errors import BackupRefused, NotRunning, PylonError, Unavailable
from pylon.files.disk import FileFolder
from pylon.storage.backend import Backend
from pylon.storage.backups import BackupRecord, BackupReport, Progress
from pylon.storage.bundle.encrypted import (
    Encryption,
    create_encrypted,
    make_workspace,
)
from pylon.storage.bundle.record import write_record
from pylon.storage.factory import open_store

_clock = SystemClock()
_VERBS: Final = {"verify": verify, "list": list_archive, "drill": drill, "prune": prune}
_PROGRESS_EVERY_S: Final = 0.2


@click.command()
@click.argument(
    "words", nargs=-1, required=True,
    metavar="DIR | verify DIR|URL | list [URL] | drill [DIR|URL] | prune [DIR|URL]",
)
@click.option(
    "--deep", is_flag=True,
    help="verify: also restore the bundle into a scratch place, and compare every table. On "
    "PostgreSQL that is a database of its own, on the server of DATABASE_URL.",
)
@click.option(
    "--at", metavar="TIME", help="verify URL: the newest commit at or before a time."
)
@click.option("--dry-run", is_flag=True, help="prune: say what would go, and delete nothing.")
@click.option(
    "--keep", metavar="RULES",
    help="prune: in place of PYLON_BACKUP_KEEP, as days=7,daily=14,weekly=8,monthly=12.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="FOLDER",
    help="drill: where the report goes; default is drills in the data directory.",
)
@click.option(
    "--encrypt", is_flag=True, help="Encrypt the bundle with a passphrase (format: age)."
)
@click.option(
    "--recipient", multiple=True, metavar="age1…",
    help="Encrypt the bundle for this age recipient; may be repeated.",
)
@opening_options
@dev_flag
@json_flag
@click.pass_context
def backup(
    ctx: click.Context, words: tuple[str, ...], deep: bool, at: str | None, dry_run: bool,
    keep: str | None, report: Path | None, encrypt: bool, recipient: tuple[str, ...],
    passphrase_file: Path | None, identity: Path | None, dev: bool,
) -> None:
    """Write a backup bundle to DIR, also while the server runs.

    verify checks a bundle, or restores the continuous backup at URL into a scratch place. list
    shows what such a backup brings back. drill restores the newest backup into a scratch place, and
    leaves a report; exit code 1 if a step fails. prune deletes what PYLON_BACKUP_KEEP does not
    keep: of an archive, or the bundles below a folder. URL defaults to PYLON_BACKUP_URL.
    """
    verb = _VERBS.get(words[0])
    if verb is not None and len(words) <= 2 and (len(words) == 2 or words[0] != "verify"):
        if encrypt or recipient:
            raise click.UsageError(f"--encrypt and --recipient are not of: {words[0]}")
        options = VerbOptions(
            words[1] if len(words) == 2 else None, deep, at, dry_run, keep, report,
            passphrase_file, identity, dev,
        )
        with end_by_signals():
            ctx.exit(verb(options))
    given = {"--identity": identity, "--at": at, "--keep": keep, "--report": report,
             "--deep": deep or None, "--dry-run": dry_run or None}
    for name, value in given.items():
        if value is not None:
            raise click.UsageError(f"{name} is not of a backup to a folder; see --help")
    if len(words) != 1:
        raise click.UsageError("give one folder, or: verify, list, drill or prune, and a source")
    target = Path(words[0]).absolute()
    config = read_settings(dev=dev).config
    encryption = read_encryption(
        encrypt=encrypt, recipients=recipient, passphrase_file=passphrase_file
    )
    with end_by_signals():
        try:
            made = _make_backup(config, _Bundle(config, open_store(config), target, encryption))
        except (PylonError, OSError) as ex:
            tell_hook(config, "bundle", str(target), text_of(ex))
            raise
    if not made.secret_key:
        note(_missing_key_text(config))
    if any(FileFolder(config.files_folder).keys()):
        note(
            f"the bundle does not have the files that clients uploaded: copy {config.files_folder} "
            "too, after the bundle (docs/files.md)"
        )
    result(made.to_json(), f"{target}: seq {made.seq}, {made.size_bytes} bytes")


def _missing_key_text(config: Config) -> str:
    if config.secret_key_file is not None:
        place = f"in {config.secret_key_file} (PYLON_SECRET_KEY_FILE)"
    elif config.secret_key is not None or config.database_url is not None:
        place = "in the environment (PYLON_SECRET_KEY)"
    else:
        return "the bundle has no secret key: the server has not made one yet"
    return f"the bundle does not have the secret key, which is {place}: keep a copy of it elsewhere"


@dataclass(frozen=True, slots=True)
class _Bundle:
    """The bundle to make: from what, where, and for whom."""

    config: Config
    store: Backend
    target: Path
    encryption: Encryption | None

    def create(
        self, manifest: Path, on_progress: Progress | None = None,
        on_copied: Callable[[], None] | None = None,
    ) -> BackupReport:
        """Make it. See `BackupManager.create`."""

        def create(target: Path) -> BackupReport:
            return self.store.backups.create(
                target, manifest, on_progress, on_copied, key_file=key_file_of(self.config)
                if self.config.secret_key_file is None else None,
            )

        if self.encryption is None:
            return create(self.target)
        with make_workspace(self.config.data_dir) as plain:
            return create_encrypted(self.target, self.encryption, plain, create)


def _make_backup(config: Config, bundle: _Bundle) -> BackupReport:
    store, path = bundle.store, Path(config.db_path).absolute()
    if not store.backups.holds_log:
        return _make_beside_server(config, bundle)
    if config.in_memory:
        raise BackupRefused("PYLON_IN_MEMORY is on: there is no file to back up")
    if not store.exists():
        raise BackupRefused(f"there is no database at {path} (PYLON_DB_PATH)")
    try:
        with lock_data_dir(path), manifest_json(config) as manifest:
            report = bundle.create(manifest)
            _record(store, report)
            return report
    except DataDirLocked:
        dialogue = require_running(config).control().open_dialogue("backup")
    with dialogue:
        return _Copy(dialogue, bundle).make()


def _make_beside_server(config: Config, bundle: _Bundle) -> BackupReport:
    """Make the bundle of a store that needs no server of Pylon. A server that runs here is told
    once it is made, for its metrics."""
    told_s = _clock.monotonic_s()

    def tell(remaining: int, tables: int) -> None:
        nonlocal told_s
        if _clock.monotonic_s() - told_s >= _PROGRESS_EVERY_S * 5 and not wants_json():
            told_s = _clock.monotonic_s()
            note(f"{remaining} of {tables} tables left")

    with manifest_json(config) as manifest:
        report = bundle.create(manifest, tell)
    try:
        with require_running(config).control().open_dialogue("backup") as dialogue:
            dialogue.receive_line()
            dialogue.send_line(copied=True)
            dialogue.send_line(report=report.to_json())
            dialogue.receive_line()
    except (NotRunning, Unavailable):
        if Path(config.db_path).parent.is_dir():
            _record(bundle.store, report)
    return report


class _Copy:
    """Copies the database of a running server, in a dialogue with its supervisor."""

    def __init__(self, dialogue: ControlDialogue, bundle: _Bundle) -> None:
        self._dialogue = dialogue
        self._bundle = bundle
        self._printed_s = _clock.monotonic_s()

    def make(self) -> BackupReport:
        """Make the bundle and return the report.

        Raises:
            Unavailable: another backup runs, or the server cancels this one.
        """
        manifest = Path(self._dialogue.receive_line()["manifest"])
        report = self._bundle.create(manifest, self._print_progress, self._report_copied)
        try:
            self._dialogue.send_line(report=report.to_json())
            self._dialogue.receive_line()
        except NotRunning:  # the server has ended; the bundle is complete without it
            _record(self._bundle.store, report)
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
def end_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as Ctrl-C does, so that it removes partial files."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
