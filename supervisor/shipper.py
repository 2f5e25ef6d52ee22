"""The shipper: uploads captured segments and snapshots to the archive of PYLON_BACKUP_URL.

The flusher captures segments into the spool (`pylon.storage.interface.Maintenance`). The shipper, a
thread of its own, uploads them oldest first, so that a slow or dead archive delays no write and no
checkpoint. It makes a snapshot in a new generation, when the manifest has changed, and every
PYLON_BACKUP_SNAPSHOT_HOURS. It prunes the archive by PYLON_BACKUP_KEEP. If the chain has ended
(`SpoolState.broken`) it begins another generation as soon as the archive answers.

Invariants: a segment leaves the spool after the archive has it. The file that makes a snapshot
complete is uploaded last, behind the segments that it needs. After a failure the shipper waits, for
at most `limits.ARCHIVE_DELAY_MAX_S`, and tries again; the hook is told of a failure once in
`limits.BACKUP_HOOK_EVERY_S`, and of its end.

Metrics: pylon_backup_lag_seconds, pylon_backup_shipped_timestamp_seconds,
pylon_backup_snapshot_timestamp_seconds, pylon_backup_spool_size_bytes,
pylon_backup_shipped_bytes_total, pylon_backup_failures_total. Made by `supervisor.main`.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from pylon import limits, log, metrics
from pylon.archive.hook import HookEvent, call_hook
from pylon.archive.interface import Archive
from pylon.clock import Clock, RandomSource
from pylon.disk_errors import describe_os_error
from pylon.errors import PylonError, Unavailable
from pylon.setting_values import KeepRules
from pylon.storage.backups import BackupReport, LogCapture, SnapshotReport
from pylon.storage.bundle.encrypted import Encryption, create_encrypted
from pylon.storage.bundle.sealed import seal_file
from pylon.storage.shipping.catalogue import read_catalogue
from pylon.storage.shipping.names import SEGMENTS, SNAPSHOTS, show_time
from pylon.storage.shipping.retention import plan_prune
from pylon.storage.shipping.spool import SpooledSegment

_log = log.get_logger("shipper")
_PERIOD_S: Final = 1.0
_STOP_PATIENCE_S: Final = 5.0
_LAST: Final = ("MANIFEST.json", "bundle.tar.age")  # the file that makes a bundle complete
_HOUR_S: Final = 3_600
_FACTS: Final = "snapshot.json"


@dataclass(frozen=True, slots=True)
class ShippingPlan:
    """The settings of the continuous backup. `key_file`: goes into snapshots; None: it does not."""

    url: str
    snapshot_hours: int
    keep: KeepRules
    recipients: tuple[str, ...]
    hook: str | None
    manifest: Path
    key_file: Path | None


class _SnapshotFacts(msgspec.Struct, frozen=True):
    """The newest complete snapshot, kept in the spool."""

    generation: str
    at_ms: int
    manifest: str  # SHA-256


class Shipper:
    """`start` it once the store is open; `stop` it before the last capture, then `finish`."""

    def __init__(
        self, capture: LogCapture, plan: ShippingPlan, clock: Clock, random: RandomSource,
        open_place: Callable[[], Archive],
    ) -> None:
        """`open_place`: opens the archive."""
        self._capture = capture
        self._plan = plan
        self._clock = clock
        self._random = random
        self._open = open_place
        self._archive: Archive | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shipper", daemon=True)
        self._failures = 0
        self._step = "upload"
        self._hooked_s = float("-inf")
        self._is_hooked = False
        self._pruned_s = float("-inf")
        self._shipped_s = clock.monotonic_s()  # when the archive had all that is before it
        metrics.SHIPPING_LAG.set_function(self.lag_s)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; an upload under way has a moment to end. Idempotent."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_PATIENCE_S)

    def finish(self) -> int:
        """Upload what waits, after the last capture, for `limits.ARCHIVE_FINAL_S` at most. Return
        how many segments still wait: the next start uploads them."""
        until_s = self._clock.monotonic_s() + limits.ARCHIVE_FINAL_S
        try:
            waiting = self._capture.spool.list_segments()
            while waiting and self._clock.monotonic_s() < until_s and not self._thread.is_alive():
                self._upload(self._place(), waiting.pop(0))
        except (PylonError, OSError) as ex:
            _log.warning("backup.not_finished", error=_text(ex), waiting=len(waiting),
                         hint="the next start uploads what waits")
        return len(waiting)

    def lag_s(self) -> float:
        """Return how old the oldest commit may be that the archive lacks."""
        return round(self._clock.monotonic_s() - self._shipped_s, 3)

    def run_round(self) -> None:
        """Upload, take a snapshot and prune, as far as it is time for each.

        Raises:
            PylonError, OSError
        """
        self._step = "upload"
        archive = self._place()
        captured_s = self._capture.complete_s
        self._upload_all(archive)
        state = self._capture.state
        if state.broken:
            archive.list_objects(f"{state.generation}/{SNAPSHOTS}/")  # whether it answers
            self._capture.begin_generation(state.broken)
        else:
            self._shipped_s = max(self._shipped_s, captured_s)
            metrics.SHIPPING_LAST_SUCCESS.set(
                self._clock.wall_ns() // 10**9 - int(self._clock.monotonic_s() - self._shipped_s)
            )
        self._step = "snapshot"
        if self._is_snapshot_due():
            self._take_snapshot(archive)
        self._step = "prune"
        if self._clock.monotonic_s() - self._pruned_s >= limits.PRUNE_ARCHIVE_S:
            self._pruned_s = self._clock.monotonic_s()
            self._prune(archive)

    # --- Inside --------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = 0.0
        while not self._ending.wait(wait_s):
            try:
                self.run_round()
            except (PylonError, OSError) as ex:
                wait_s = self._note_failure(ex)
            else:
                wait_s = _PERIOD_S
                self._note_success()

    def _note_failure(self, error: PylonError | OSError) -> float:
        """Log, count and tell a failure. Return how long to wait."""
        if self._ending.is_set():
            return 0.0
        text = _text(error)
        metrics.SHIPPING_FAILURES.labels(self._step).inc()
        if self._failures == 0 or self._clock.monotonic_s() - self._hooked_s >= _HOUR_S:
            _log.error("backup.failing", step=self._step, error=text, lag_s=self.lag_s(),
                       place=self._plan.url, hint="segments gather in the spool meanwhile")
        self._call_hook("backup.failed", text)
        self._failures += 1
        delay_s = min(
            limits.ARCHIVE_DELAY_FIRST_S * 2 ** min(self._failures, 10), limits.ARCHIVE_DELAY_MAX_S
        )
        return self._random.uniform(limits.ARCHIVE_DELAY_FIRST_S, delay_s)

    def _note_success(self) -> None:
        if self._failures:
            _log.info("backup.recovered", failures=self._failures, lag_s=self.lag_s())
            self._failures = 0
            if self._is_hooked:
                self._hooked_s = float("-inf")
                self._call_hook("backup.recovered", "")
                self._hooked_s, self._is_hooked = float("-inf"), False

    def _call_hook(self, event: str, error: str) -> None:
        now_s = self._clock.monotonic_s()
        hook = self._plan.hook
        if hook is None or now_s - self._hooked_s < limits.BACKUP_HOOK_EVERY_S:
            return
        self._hooked_s, self._is_hooked = now_s, True
        at = show_time(self._clock.wall_ns() // 1_000_000)
        problem = call_hook(hook, HookEvent(event, self._step, error, self._plan.url, at))
        if problem is not None:
            metrics.SHIPPING_FAILURES.labels("hook").inc()
            _log.error("backup.hook_failed", error=problem)

    def _place(self) -> Archive:
        if self._archive is None:
            self._archive = self._open()
        return self._archive

    def _upload_all(self, archive: Archive) -> None:
        while not self._ending.is_set():
            waiting = self._capture.spool.list_segments()
            size_bytes = sum(each.size_bytes for each in waiting)
            metrics.SHIPPING_SPOOL_BYTES.set(size_bytes)
            if not waiting:
                break
            for segment in waiting:
                if self._ending.is_set():
                    break
                self._upload(archive, segment)

    def _upload(self, archive: Archive, segment: SpooledSegment) -> None:
        name = segment.name
        if not self._plan.recipients:
            archive.put(f"{segment.generation}/{SEGMENTS}/{name}", segment.path)
        else:
            name = replace(name, is_encrypted=True)
            sealed = self._capture.spool.folder / ".tmp-sealed"
            seal_file(segment.path, sealed, self._plan.recipients)
            archive.put(f"{segment.generation}/{SEGMENTS}/{name}", sealed)
            sealed.unlink()
        metrics.SHIPPING_SENT_BYTES.inc(segment.size_bytes)
        self._capture.spool.remove(segment)

    def _is_snapshot_due(self) -> bool:
        facts = self._read_facts()
        if facts is None or facts.generation != self._capture.state.generation:
            return True
        metrics.SHIPPING_SNAPSHOT.set(facts.at_ms / 1000)
        age_ms = self._clock.wall_ns() // 1_000_000 - facts.at_ms
        return (
            age_ms >= self._plan.snapshot_hours * _HOUR_S * 1000
            or facts.manifest != self._manifest_hash()
        )

    def _take_snapshot(self, archive: Archive) -> None:
        started_s = self._clock.monotonic_s()
        folder = self._capture.spool.folder / ".tmp-snapshot"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            manifest_hash = self._manifest_hash()
            report = self._make_bundle(folder)
            self._upload_all(archive)
            size_bytes = self._upload_bundle(archive, folder / "bundle", report)
            facts = _SnapshotFacts(report.generation, report.name.at_ms, manifest_hash)
            (self._capture.spool.folder / _FACTS).write_bytes(msgspec.json.encode(facts))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        metrics.SHIPPING_SENT_BYTES.inc(size_bytes)
        metrics.SHIPPING_SNAPSHOT.set(report.name.at_ms / 1000)
        _log.info("backup.snapshot", generation=report.generation, seq=report.bundle.seq,
                  size_bytes=size_bytes,
                  duration_s=round(self._clock.monotonic_s() - started_s, 3))

    def _make_bundle(self, folder: Path) -> SnapshotReport:
        plan = self._plan
        made: list[SnapshotReport] = []

        def create(target: Path) -> BackupReport:
            report = self._capture.snapshot(
                target, plan.manifest, plan.key_file, self._stop_if_ending
            )
            made.append(report)
            return report.bundle

        if plan.recipients:
            encryption = Encryption(recipients=plan.recipients)
            create_encrypted(folder / "bundle", encryption, folder / "plain", create)
        else:
            create(folder / "bundle")
        return made[0]

    def _upload_bundle(self, archive: Archive, bundle: Path, report: SnapshotReport) -> int:
        base = f"{report.generation}/{SNAPSHOTS}/{report.name}"
        size_bytes = 0
        for path in sorted(bundle.iterdir(), key=lambda each: (each.name in _LAST, each.name)):
            self._stop_if_ending(0, 0)
            size_bytes += path.stat().st_size
            archive.put(f"{base}/{path.name}", path)
        return size_bytes

    def _prune(self, archive: Archive) -> None:
        generations = read_catalogue(archive)
        plan = plan_prune(generations, self._plan.keep, self._clock.wall_ns() // 1_000_000)
        if plan.objects:
            archive.delete([each.name for each in plan.objects])
            _log.info("backup.pruned", snapshots=len(plan.snapshots), segments=plan.segments,
                      size_bytes=plan.size_bytes)

    def _stop_if_ending(self, _remaining: int, _pages: int) -> None:
        if self._ending.is_set():
            raise InterruptedError("the server is stopping")
        if self._capture.state.broken:  # the copy keeps the WAL from beginning anew
            raise Unavailable("the chain of segments has ended meanwhile")

    def _read_facts(self) -> _SnapshotFacts | None:
        try:
            raw = (self._capture.spool.folder / _FACTS).read_bytes()
            return msgspec.json.decode(raw, type=_SnapshotFacts)
        except (OSError, msgspec.MsgspecError):
            return None

    def _manifest_hash(self) -> str:
        return sha256(self._plan.manifest.read_bytes()).hexdigest()


def _text(error: PylonError | OSError) -> str:
    return describe_os_error(error) if isinstance(error, OSError) else error.message
