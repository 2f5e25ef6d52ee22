"""Retention of an archive: which snapshots and segments may go.

`KeepRules` come from PYLON_BACKUP_KEEP. Every moment of the last `days` days can be restored. From
before that the newest snapshot of each of the last `daily` days, `weekly` weeks (ISO) and `monthly`
months stays, which is restored as it is.

Invariants: the newest snapshot stays, and all segments after it. What the archive has beside
backups is not touched. Pure functions; called by `supervisor.shipper` and `pylonctl backup prune`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from pylon.archive.interface import ArchivedObject
from pylon.setting_values import KeepRules
from pylon.storage.shipping.catalogue import ArchivedSnapshot, Generation
from pylon.storage.shipping.names import SNAPSHOTS, parse_segment, parse_snapshot

_DAY_MS: Final = 86_400_000
_UNFINISHED_MS: Final = 2 * _DAY_MS  # then nobody uploads the rest any more

Key = tuple[str, ArchivedSnapshot]


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """The objects to delete. `snapshots`: their names, with the generation; `objects`: all."""

    snapshots: tuple[str, ...]
    segments: int
    objects: tuple[ArchivedObject, ...]
    kept_snapshots: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Return the size of what goes."""
        return sum(each.size_bytes for each in self.objects)


def plan_prune(generations: Sequence[Generation], rules: KeepRules, now_ms: int) -> PrunePlan:
    """Decide. Pruning twice is like pruning once."""
    every: list[Key] = [(each.name, snap) for each in generations for snap in each.snapshots]
    window_ms = now_ms - rules.days * _DAY_MS
    base = _find_base(every, window_ms)
    kept = choose_kept([(_label(key), key[1].name.at_ms) for key in every], rules, now_ms)
    if base is not None:
        kept.add(_label(base))
    objects: list[ArchivedObject] = []
    segments = 0
    for generation in generations:
        for snapshot in generation.snapshots:
            if _label((generation.name, snapshot)) not in kept:
                # The file that makes it complete goes first: a cut leaves an unfinished one.
                objects += sorted(snapshot.files, key=lambda each: "MANIFEST" not in each.name)
        old = [
            each.object for each in generation.segments
            if _is_before(generation, each.name.number, each.name.at_ms, base, window_ms)
        ]
        segments += len(old)
        objects += old
        objects += [
            each for each in generation.unfinished if _age_of(each, now_ms) > _UNFINISHED_MS
        ]
    return PrunePlan(
        tuple(_label(key) for key in every if _label(key) not in kept), segments, tuple(objects),
        tuple(_label(key) for key in every if _label(key) in kept),
    )


def _find_base(every: Sequence[Key], window_ms: int) -> Key | None:
    """Return the newest snapshot from before the window: its segments reach into it."""
    before = [key for key in every if key[1].name.at_ms <= window_ms]
    return before[-1] if before else None


def choose_kept(times: Sequence[tuple[str, int]], rules: KeepRules, now_ms: int) -> set[str]:
    """Return the labels that the rules keep, of labels and their Unix times in ms, oldest first."""
    window_ms = now_ms - rules.days * _DAY_MS
    kept = {label for label, at_ms in times if at_ms > window_ms}
    kept |= {label for label, _ in times[-1:]}
    periods: tuple[tuple[int, Callable[[datetime], object]], ...] = (
        (rules.daily, lambda at: at.date()),
        (rules.weekly, lambda at: at.isocalendar()[:2]),
        (rules.monthly, lambda at: (at.year, at.month)),
    )
    for count, period_of in periods:
        newest: dict[object, str] = {}
        for label, at_ms in times:
            newest[period_of(_time(at_ms))] = label
        kept |= set(list(newest.values())[len(newest) - min(count, len(newest)):])
    return kept


def _is_before(
    generation: Generation, number: int, at_ms: int, base: Key | None, window_ms: int
) -> bool:
    """Whether no snapshot in the window, nor the one before it, needs a segment."""
    if base is None:
        return False
    if generation.name != base[0]:
        return generation.name < base[0] and at_ms <= window_ms
    return number < base[1].name.number


def _age_of(each: ArchivedObject, now_ms: int) -> int:
    parts = each.name.split("/")
    name = parse_snapshot(parts[2]) if parts[1] == SNAPSHOTS else parse_segment(parts[2])
    return 0 if name is None else now_ms - name.at_ms


def _time(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)


def _label(key: Key) -> str:
    return f"{key[0]}/{key[1].name}"
