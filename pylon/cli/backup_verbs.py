"""The verbs of `pylonctl backup` beside making a bundle: `verify`, `list`, `drill` and `prune`.

A source is the folder of a bundle, or the URL of the archive of a continuous backup; without one it
is PYLON_BACKUP_URL. Called by `pylon.cli.backup`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

from pylon.archive.url import is_archive_url
from pylon.cli.archives import (
    describe_target,
    open_configured,
    parse_point,
    point_in_time,
    target_json,
    tell_hook,
)
from pylon.cli.backup_drill import DrillReport, drill_archive, drill_bundle, write_report
from pylon.cli.bundle_options import open_bundle
from pylon.cli.output import ERROR, OK, result
from pylon.cli.settings import read_settings
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.errors import BackupRefused
from pylon.setting_values import KeepRules, keep_rules
from pylon.storage.backups import BackupManager
from pylon.storage.bundle.contents import SQLITE, read_contents
from pylon.storage.bundle.encrypted import is_encrypted
from pylon.storage.bundle.retention import drop_bundle, plan_bundles
from pylon.storage.factory import open_dump_backups, open_store, open_store_at
from pylon.storage.shipping.catalogue import Generation, read_catalogue
from pylon.storage.shipping.names import show_time
from pylon.storage.shipping.retention import plan_prune

_clock = SystemClock()


@dataclass(frozen=True, slots=True)
class VerbOptions:
    """The options of a verb. `source`: a folder, a URL, or None."""

    source: str | None
    deep: bool
    at: str | None
    dry_run: bool
    keep: str | None
    report: Path | None
    passphrase_file: Path | None
    identity: Path | None
    dev: bool

    @property
    def is_archive(self) -> bool:
        """Whether the source is an archive."""
        return self.source is None or is_archive_url(self.source)


def verify(options: VerbOptions) -> int:
    """`backup verify DIR`, or `backup verify URL [--at TIME]`."""
    if options.is_archive:
        config = read_settings(dev=options.dev).config
        archive = open_configured(config, options.source)
        with point_in_time(
            config, archive, parse_point(options.at, None), options.identity, allow_gap=False
        ) as made:
            report = open_store(config).backups.verify(made.bundle, deep=True)
            report = replace(report, source=archive.place)
            result(
                {**report.to_json(), "restored_to": target_json(made)},
                f"{archive.place} is sound: it brings back {describe_target(made)}, "
                f"{report.rows} rows",
            )
        return OK
    source = Path(options.source or "")
    data_dir = read_settings(dev=options.dev).config.data_dir if is_encrypted(source) else None
    with open_bundle(source, data_dir, options.passphrase_file, options.identity) as plain:
        backups = _backups_for(plain, deep=options.deep, dev=options.dev)
        report = backups.verify(plain, deep=options.deep)
    report = replace(report, source=str(source))
    result(report.to_json(), f"{source} is sound: seq {report.seq}, made {report.created_at}")
    return OK


def list_archive(options: VerbOptions) -> int:
    """`backup list [URL]`: what can be restored."""
    config = read_settings(dev=options.dev).config
    archive = open_configured(config, options.source)
    generations = read_catalogue(archive)
    body = {"place": archive.place, "generations": [_describe(each) for each in generations]}
    lines = [_show(each) for each in generations]
    result(body, "\n".join(lines) or f"{archive.place} has no backup yet")
    return OK


def drill(options: VerbOptions) -> int:
    """`backup drill [DIR | URL] [--report FOLDER]`. Returns 1 if a step has failed."""
    config = read_settings(dev=options.dev).config
    report = _run_drill(config, options)
    path = write_report(report, options.report or config.data_dir / "drills")
    if not report.ok:
        tell_hook(config, "drill", report.source, report.error)
    result({**report.to_json(), "report": str(path)}, f"{report.to_text()}report:        {path}")
    return OK if report.ok else ERROR


def prune(options: VerbOptions) -> int:
    """`backup prune [DIR | URL] [--dry-run] [--keep RULES]`."""
    config = read_settings(dev=options.dev).config
    rules = config.backup_keep if options.keep is None else _parse_rules(options.keep)
    if not options.is_archive:
        return _prune_bundles(Path(options.source or ""), rules, dry_run=options.dry_run)
    archive = open_configured(config, options.source)
    plan = plan_prune(read_catalogue(archive), rules, _now_ms())
    if not options.dry_run:
        archive.delete([each.name for each in plan.objects])
    said = "would delete" if options.dry_run else "deleted"
    lines = [f"{said} {name}" for name in plan.snapshots] + [
        f"{said} {plan.segments} segments and {len(plan.snapshots)} snapshots, "
        f"{plan.size_bytes} bytes; {len(plan.kept_snapshots)} snapshots stay"
    ]
    result({
        "ok": True, "dry_run": options.dry_run, "deleted_snapshots": list(plan.snapshots),
        "deleted_segments": plan.segments, "deleted_bytes": plan.size_bytes,
        "kept_snapshots": list(plan.kept_snapshots),
    }, "\n".join(lines))
    return OK


def _prune_bundles(folder: Path, rules: KeepRules, *, dry_run: bool) -> int:
    if not folder.is_dir():
        raise BackupRefused(f"{folder} is not a folder")
    plan = plan_bundles(folder, rules, _now_ms())
    for path in () if dry_run else plan.dropped:
        drop_bundle(path)
    said = "would delete" if dry_run else "deleted"
    lines = [f"{said} {path}" for path in plan.dropped] + [
        f"{said} {len(plan.dropped)} bundles; {len(plan.kept)} stay"
    ]
    result({
        "ok": True, "dry_run": dry_run, "deleted": [str(path) for path in plan.dropped],
        "kept": [str(path) for path in plan.kept],
    }, "\n".join(lines))
    return OK


def _run_drill(config: Config, options: VerbOptions) -> DrillReport:
    if options.is_archive:
        archive = open_configured(config, options.source)
        return drill_archive(config, archive, open_store(config).backups, options.identity, _clock)
    source = Path(options.source or "")
    data_dir = config.data_dir if is_encrypted(source) else None
    with open_bundle(source, data_dir, options.passphrase_file, options.identity) as plain:
        backups = _backups_for(plain, deep=True, dev=options.dev)
        return drill_bundle(config, source, plain, backups, _clock)


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


def _parse_rules(text: str) -> KeepRules:
    try:
        return keep_rules(text)
    except ValueError as ex:
        raise click.UsageError(f"--keep {text}: {ex}") from None


def _describe(generation: Generation) -> dict[str, object]:
    last = generation.segments[-1].name if generation.segments else None
    return {
        "generation": generation.name,
        "snapshots": [
            {"at": show_time(each.name.at_ms), "seq": each.name.seq, "size_bytes": each.size_bytes}
            for each in generation.snapshots
        ],
        "segments": len(generation.segments),
        "segments_bytes": sum(each.object.size_bytes for each in generation.segments),
        "last_commit_at": None if last is None else show_time(last.at_ms),
        "last_seq": None if last is None else last.seq,
    }


def _show(generation: Generation) -> str:
    facts = _describe(generation)
    lines = [f"generation {generation.name}: {facts['segments']} segments"]
    lines += [
        f"  snapshot of {show_time(each.name.at_ms)}, seq {each.name.seq}, {each.size_bytes} bytes"
        for each in generation.snapshots
    ]
    if facts["last_commit_at"] is not None:
        lines.append(f"  last commit of {facts['last_commit_at']}, seq {facts['last_seq']}")
    return "\n".join(lines)


def _now_ms() -> int:
    return _clock.wall_ns() // 1_000_000
