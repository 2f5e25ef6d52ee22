"""Installation: carries a plan out, and says of each step what it did.

Invariants: running it again changes nothing. It replaces no file that was edited since it was
written, or that somebody else wrote: the new text is then put beside it as `<name>.new`. A site
that the proxy refuses is taken away again. A dry run changes nothing. Called by
`pylonctl install-systemd`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon.errors import InstallRefused
from pylon.install import commands
from pylon.install.options import (
    CADDY,
    CADDYFILE,
    COMMAND,
    SERVICE_UNITS,
    SITES,
    SOCKET_UNITS,
    InstallOptions,
)
from pylon.install.plan import PlannedFile, PlannedFolder, planned_files, planned_folders
from pylon.install.record import (
    InstallRecord,
    hash_text,
    is_edited,
    read_record,
    write_record,
)

IMPORT_LINE: Final = "import pylon.caddy\n"


@dataclass(frozen=True, slots=True)
class InstallStep:
    """One step: what was done (`made`, `wrote`, `unchanged`, `kept`, ...), to what, and why."""

    action: str
    subject: str
    note: str = ""

    def to_json(self) -> dict[str, str]:
        """Return the step for `--json`."""
        return {"action": self.action, "subject": self.subject, "note": self.note}

    def render(self) -> str:
        """Return the step as a line of text."""
        return f"{self.action:<10} {self.subject}{f' ({self.note})' if self.note else ''}"


class Installation:
    """One run of an installation."""

    def __init__(self, options: InstallOptions, *, dry_run: bool) -> None:
        self._options = options
        self._dry_run = dry_run
        self._before = read_record(options.root)
        self._record = InstallRecord(options.user, options.proxy)
        if self._before is not None:
            self._record.hash_by_path = dict(self._before.hash_by_path)
            self._record.precious = list(self._before.precious)
            self._record.links = dict(self._before.links)
            if options.proxy not in SITES:
                self._record.proxy = self._before.proxy

    def run(self, *, start: bool) -> Iterator[InstallStep]:
        """Carry it out, and yield each step after it is done.

        Args:
            start: also enable and start the units.

        Raises:
            InstallRefused: an option is missing, or a command failed.
            OSError: a file cannot be written.
        """
        options = self._options
        files = planned_files(options)
        if options.on_this_machine:
            self._refuse_missing_proxy()
            yield self._make_user()
        for folder in planned_folders():
            yield self._make_folder(folder)
        for file in files:
            yield self._write(file)
        yield self._link()
        if options.proxy == CADDY:
            yield self._import_site()
        self._save()
        if options.on_this_machine:
            yield from self._load(start=start)

    def _refuse_missing_proxy(self) -> None:
        proxy = self._options.proxy
        if proxy in SITES and not self._options.place(SITES[proxy]).parent.is_dir():
            raise InstallRefused(f"{proxy} is not installed", hint=f"apt-get install {proxy}")

    def _make_user(self) -> InstallStep:
        name = self._options.user
        if commands.has_user(name):
            return InstallStep("unchanged", f"user {name}")
        if not self._dry_run:
            commands.add_user(name)
        return InstallStep("made", f"user {name}")

    def _make_folder(self, folder: PlannedFolder) -> InstallStep:
        path = self._options.place(folder.path)
        if path.is_dir():
            return InstallStep("unchanged", str(path))
        if not self._dry_run:
            path.mkdir(parents=True)
            path.chmod(folder.mode)
            if folder.owned and self._options.on_this_machine:
                os.chown(path, *commands.ids_of(self._options.user))
        owner = self._options.user if folder.owned else "root"
        return InstallStep("made", str(path), f"{owner}, {folder.mode:04o}")

    def _write(self, file: PlannedFile) -> InstallStep:
        path, root = self._options.place(file.path), self._options.root
        if not path.exists():
            self._put(path, file)
            return InstallStep("wrote", str(path))
        if path.read_text(errors="replace") == file.text:
            self._note(file)
            return InstallStep("unchanged", str(path))
        if is_edited(self._before, root, file.path):
            beside = path.with_name(f"{path.name}.new")
            if not self._dry_run:
                beside.write_text(file.text)
                beside.chmod(file.mode)
            return InstallStep("kept", str(path), f"it was edited; the new text is in {beside}")
        self._put(path, file)
        return InstallStep("replaced", str(path), "nobody had edited it")

    def _put(self, path: Path, file: PlannedFile) -> None:
        if self._dry_run:
            return
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            path.parent.chmod(0o755)  # the umask of pylonctl is private
        copy = path.with_name(f".{path.name}.part")
        copy.write_text(file.text)
        copy.chmod(file.mode)
        if file.shared and self._options.on_this_machine:
            os.chown(copy, 0, commands.ids_of(self._options.user)[1])
        copy.rename(path)
        self._note(file)

    def _note(self, file: PlannedFile) -> None:
        self._record.hash_by_path[file.path] = hash_text(file.text)
        if file.precious and file.path not in self._record.precious:
            self._record.precious.append(file.path)

    def _link(self) -> InstallStep:
        path, program = self._options.place(COMMAND), self._options.program
        if path.is_symlink() and path.readlink() == program:
            return InstallStep("unchanged", str(path))
        if os.path.lexists(path) and COMMAND not in self._record.links:
            return InstallStep("kept", str(path), f"it is not a link to {program}")
        if not self._dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.symlink_to(program)
            self._record.links[COMMAND] = str(program)
        return InstallStep("linked", str(path), f"to {program}")

    def _import_site(self) -> InstallStep:
        path = self._options.place(CADDYFILE)
        text = path.read_text() if path.exists() else ""
        if IMPORT_LINE in text:
            return InstallStep("unchanged", str(path))
        if not self._dry_run:
            joined = text if not text or text.endswith("\n") else text + "\n"
            path.write_text(joined + IMPORT_LINE)
            path.chmod(0o644)
        return InstallStep("changed", str(path), f"added the line: {IMPORT_LINE.strip()}")

    def _save(self) -> None:
        if not self._dry_run:
            write_record(self._options.root, self._record)

    def _load(self, *, start: bool) -> Iterator[InstallStep]:
        proxy = self._options.proxy
        if proxy in SITES:
            if not self._dry_run:
                self._check_site(proxy)
            yield InstallStep("checked", f"configuration of {proxy}")
        if not commands.has_systemd():
            yield InstallStep("skipped", "systemctl", "systemd does not run this machine")
            return
        if not self._dry_run:
            commands.run("systemctl", "daemon-reload")
        yield InstallStep("loaded", "the units", "systemctl daemon-reload")
        if proxy in SITES and commands.is_active(proxy):
            if not self._dry_run:
                commands.run("systemctl", "reload", proxy)
            yield InstallStep("reloaded", proxy)
        if start:
            for units in (SOCKET_UNITS, SERVICE_UNITS):
                if not self._dry_run:
                    commands.run("systemctl", "enable", "--quiet", "--now", *units)
                yield InstallStep("started", " ".join(units))

    def _check_site(self, proxy: str) -> None:
        """Have the proxy check its configuration.

        Raises:
            InstallRefused: it refuses the site, which is no longer there then.
        """
        try:
            commands.run(*commands.CHECKS[proxy])
        except InstallRefused:
            path = SITES[proxy]
            if self._before is None or path not in self._before.hash_by_path:
                remove_site(self._options.root, proxy)
                self._record.hash_by_path.pop(path, None)
                self._save()
            raise


def remove_site(root: Path, proxy: str) -> None:
    """Remove the site of a proxy, and the line that imports it."""
    (root / SITES[proxy]).unlink(missing_ok=True)
    caddyfile = root / CADDYFILE
    if proxy == CADDY and caddyfile.exists():
        caddyfile.write_text(caddyfile.read_text().replace(IMPORT_LINE, ""))
