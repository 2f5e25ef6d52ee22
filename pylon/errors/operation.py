"""Errors of start-up and operation, never answered over HTTP.

Part of the one error tree; see `pylon.errors`."""

from __future__ import annotations

from collections.abc import Sequence

from pylon.errors.base import PylonError


class StartRefused(PylonError):
    """Start-up refuses what is unsafe or impossible: one line that names the setting or file, and
    exit code 78 (EX_CONFIG).

    Remedy: mend what the line names; pylonctl check-config lists everything at once.
    """

    code = "START_REFUSED"
    status = 500


class StartDelayed(StartRefused):
    """A start cannot write to a disk: it is full, read-only or broken. One line that names the
    path, and exit code 75 (EX_TEMPFAIL), after which systemd tries again.

    Remedy: make room on the disk or mend it, and start again.
    """

    code = "START_DELAYED"


class SettingsRefused(StartRefused):
    """Settings have values that cannot be read; `problems` has a line for each.

    Remedy: correct the values that the lines name; pylonctl check-config lists everything at
    once.
    """

    code = "SETTINGS_REFUSED"

    def __init__(self, problems: Sequence[str], loaded: object = None) -> None:
        """
        Args:
            loaded: the settings with the default in place of each bad value
                (`pylon.config.Loaded`), so that a check can go on.
        """
        more = f" (and {len(problems) - 1} more: pylonctl check-config lists them)"
        super().__init__(problems[0] + (more if len(problems) > 1 else ""))
        self.problems = tuple(problems)
        self.loaded = loaded


class SchemaRefused(StartRefused):
    """The live schema cannot be brought to the manifest by additive steps. The plan is shown.

    Remedy: undo the change in the manifest, or make a backup and run pylonctl schema apply
    --allow-destructive.
    """

    code = "SCHEMA_REFUSED"


class ReloadRefused(StartRefused):
    """A reload found settings, a manifest or an app that cannot be used, or a change that needs a
    restart. Nothing has changed: the server serves on as before.

    Remedy: mend what the line names and reload again, or run pylonctl restart.
    """

    code = "RELOAD_REFUSED"
    status = 409


class ReloadBusy(PylonError):
    """A reload, a scaling or a restart is under way, and only one at a time can be.

    Remedy: wait until it has ended (pylonctl status), and try again.
    """

    code = "RELOAD_BUSY"
    status = 409
    retryable = True


class BackupInvalid(PylonError):
    """A bundle is incomplete, or its contents do not match its checksums.

    Remedy: use another bundle; pylonctl backup verify DIR says what is wrong with this one.
    """

    code = "BACKUP_INVALID"
    status = 500


class BackupRefused(PylonError):
    """A backup or a restore that would overwrite something, or that has nothing to copy.

    Remedy: name an empty folder; stop the server before a restore.
    """

    code = "BACKUP_REFUSED"
    status = 409


class ArchiveUnavailable(PylonError):
    """The folder or the bucket of the backups does not answer, or refuses.

    Remedy: the message has its reason. Mount the folder, or check the bucket, its credentials and
    the network; the server ships what has gathered as soon as the place answers.
    """

    code = "ARCHIVE_UNAVAILABLE"
    status = 503
    retryable = True


class InstallRefused(PylonError):
    """pylonctl install-systemd or uninstall cannot do a step. The steps before it are done; each
    was printed.

    Remedy: do what the line names, and run the same command again.
    """

    code = "INSTALL_REFUSED"
    status = 409


class MigrationRefused(PylonError):
    """Data cannot be moved to another store as they are; `problems` has a line for each reason.

    Remedy: correct what the lines name. Nothing was changed in the source, and a server cannot yet
    start on the target.
    """

    code = "MIGRATION_REFUSED"
    status = 409

    def __init__(
        self, message: str, *, hint: str | None = None, problems: Sequence[str] = ()
    ) -> None:
        super().__init__(message, hint=hint)
        self.problems = tuple(problems)


class MigrationFailed(PylonError):
    """Moved data differ from their source.

    Remedy: run the migration again with --restart. If it fails again, report the table and the row
    that the text names.
    """

    code = "MIGRATION_FAILED"
    status = 500


class NotRunning(PylonError):
    """No supervisor answers for this data directory.

    Remedy: start the server, or point PYLON_DB_PATH and PYLON_RUNTIME_DIR at the one that runs.
    """

    code = "NOT_RUNNING"
    status = 503
