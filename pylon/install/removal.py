"""Removal of an installation, by its record.

Invariants: files that were edited since stay, and so do data, env file and manifest, unless the
operator wants the data deleted. Called by `pylonctl uninstall`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from pylon.errors import InstallRefused
from pylon.install import commands
from pylon.install.apply import InstallStep, remove_site
from pylon.install.options import DATA_FOLDERS, SERVICE_UNITS, SITES, SOCKET_UNITS, UNITS_FOLDER
from pylon.install.record import (
    RECORD,
    InstallRecord,
    is_edited,
    read_record,
    write_record,
)


def remove_installation(root: Path, *, delete_data: bool, dry_run: bool) -> Iterator[InstallStep]:
    """Remove what was installed below `root`, and yield each step after it is done.

    Raises:
        InstallRefused: nothing was installed there, or a command failed.
    """
    record = read_record(root)
    if record is None:
        raise InstallRefused(
            f"{root / RECORD} is missing: pylonctl install-systemd has installed nothing here"
        )
    on_this_machine = root == Path("/")
    if on_this_machine and commands.has_systemd():
        yield from _stop_units(root, dry_run=dry_run)
    for path in record.hash_by_path:
        yield _remove_file(record, root, path, delete_data=delete_data, dry_run=dry_run)
    for path, target in record.links.items():
        link = root / path
        if link.is_symlink() and str(link.readlink()) == target:
            if not dry_run:
                link.unlink()
            yield InstallStep("removed", str(link))
    if record.proxy in SITES and not (root / SITES[record.proxy]).exists() and not dry_run:
        remove_site(root, record.proxy)
    for path in DATA_FOLDERS:
        folder = root / path
        if not folder.exists():
            continue
        if not delete_data:
            yield InstallStep("kept", str(folder), "data; --delete-data removes it")
            continue
        if not dry_run:
            shutil.rmtree(folder)
        yield InstallStep("removed", str(folder))
    if not dry_run:
        _shrink_record(root, record, delete_data=delete_data)
    if on_this_machine:
        yield from _unload(record, delete_data=delete_data, dry_run=dry_run)


def _shrink_record(root: Path, record: InstallRecord, *, delete_data: bool) -> None:
    """Keep the record of what stays, so that a later run with `delete_data` finds it."""
    if not delete_data:
        record.hash_by_path = {
            path: text for path, text in record.hash_by_path.items() if path in record.precious
        }
        record.links = {}
        write_record(root, record)
        return
    (root / RECORD).unlink()
    if not any((root / RECORD).parent.iterdir()):
        (root / RECORD).parent.rmdir()


def _stop_units(root: Path, *, dry_run: bool) -> Iterator[InstallStep]:
    there = [
        unit for unit in (*SOCKET_UNITS, *SERVICE_UNITS) if (root / UNITS_FOLDER / unit).exists()
    ]
    if there:
        if not dry_run:
            commands.run("systemctl", "disable", "--quiet", "--now", *there)
        yield InstallStep("stopped", " ".join(there))


def _remove_file(
    record: InstallRecord, root: Path, path: str, *, delete_data: bool, dry_run: bool
) -> InstallStep:
    file = root / path
    if not file.exists():
        return InstallStep("unchanged", str(file), "it is gone already")
    if path in record.precious:
        if not delete_data:
            return InstallStep("kept", str(file), "--delete-data removes it")
    elif is_edited(record, root, path):
        return InstallStep("kept", str(file), "it was edited")
    if not dry_run:
        file.unlink()
        file.with_name(f"{file.name}.new").unlink(missing_ok=True)
    return InstallStep("removed", str(file))


def _unload(
    record: InstallRecord, *, delete_data: bool, dry_run: bool
) -> Iterator[InstallStep]:
    """Have systemd and the proxy forget what was removed, and remove the user with the data."""
    if commands.has_systemd():
        if not dry_run:
            commands.run("systemctl", "daemon-reload")
        if record.proxy in SITES and commands.is_active(record.proxy):
            if not dry_run:
                commands.run("systemctl", "reload", record.proxy)
            yield InstallStep("reloaded", record.proxy)
    if commands.has_user(record.user):
        if not delete_data:
            yield InstallStep("kept", f"user {record.user}", "the data belong to it")
            return
        if not dry_run:
            commands.run("userdel", record.user)
        yield InstallStep("removed", f"user {record.user}")
