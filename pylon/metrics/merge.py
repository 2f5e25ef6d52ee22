"""Many workers' snapshots as one set of families.

Counters and histograms are summed over the processes of a role and never go back: what a
dead worker had counted is folded into its role. Gauges keep the label `worker` and vanish
with it. Kept by the supervisor; not thread-safe by itself, the caller holds a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pylon.metrics.wire import Family, Sample

_LabelKey = tuple[tuple[str, str], ...]
_Sums = dict[tuple[str, _LabelKey], float]  # by sample name and labels
_SHARED_WITH_SUPERVISOR = ("pylon_bus_messages_total", "pylon_bus_dropped_total")


class Heartbeat(Protocol):
    """A worker's heartbeat, as far as its metrics go (`pylon.bus.messages.WorkerStatus`)."""

    @property
    def role(self) -> str: ...
    @property
    def worker(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def metrics(self) -> Sequence[Family]: ...


class Merged:
    """The newest snapshot of each live worker, and what the dead ones had counted."""

    __slots__ = ("_dead", "_known", "_live")

    def __init__(self) -> None:
        self._live: dict[tuple[str, str], Heartbeat] = {}
        self._dead: dict[str, _Sums] = {}  # by role
        self._known: dict[str, Family] = {}  # name, help and kind of each family ever seen

    def update(self, status: Heartbeat) -> None:
        """Take a heartbeat. One from a new process of the same name retires the old one."""
        key = (status.role, status.worker)
        before = self._live.get(key)
        if before is not None and before.pid != status.pid:
            self.forget(*key)
        for family in status.metrics:
            self._known.setdefault(family.name, family)
        self._live[key] = status

    def forget(self, role: str, worker: str) -> None:
        """A worker is gone: keep its sums, drop its gauges."""
        status = self._live.pop((role, worker), None)
        if status is not None:
            sums = self._dead.setdefault(role, {})
            for family in status.metrics:
                if family.kind != "gauge":
                    _add(sums, family.samples)

    def families(self, own: Iterable[Family] = ()) -> list[Family]:
        """All of it, with `own` (the supervisor's) beside it, in the order first seen."""
        roles: dict[str, _Sums] = {role: dict(sums) for role, sums in self._dead.items()}
        gauges: dict[str, list[Sample]] = {}
        for status in self._live.values():
            for family in status.metrics:
                if family.kind == "gauge":
                    gauges.setdefault(family.name, []).extend(_labelled(family, status))
                else:
                    _add(roles.setdefault(status.role, {}), family.samples)
        by_family: dict[str, list[Sample]] = {name: [] for name in self._known}
        for name, samples in gauges.items():
            by_family[name].extend(samples)
        owner = _owners(self._known.values())
        for role, sums in roles.items():
            for (name, labels), value in sums.items():
                sample = Sample(name, {**dict(labels), "role": role}, value)
                by_family[owner[name]].append(sample)
        out = {
            name: Family(name, family.help, family.kind, by_family[name])
            for name, family in self._known.items() if by_family[name]
        }
        for family in own:
            _put_own(out, family)
        return list(out.values())


def _put_own(out: dict[str, Family], family: Family) -> None:
    if family.name in _SHARED_WITH_SUPERVISOR:
        samples = [Sample(s.name, {**s.labels, "role": "supervisor"}, s.value)
                   for s in family.samples]
        workers = out[family.name].samples if family.name in out else []
        family = Family(family.name, family.help, family.kind, [*workers, *samples])
    out[family.name] = family


def _add(sums: _Sums, samples: Iterable[Sample]) -> None:
    for sample in samples:
        key = (sample.name, tuple(sample.labels.items()))
        sums[key] = sums.get(key, 0.0) + sample.value


def _labelled(family: Family, status: Heartbeat) -> list[Sample]:
    return [
        Sample(s.name, {**s.labels, "role": status.role, "worker": status.worker}, s.value)
        for s in family.samples
    ]


def _owners(families: Iterable[Family]) -> dict[str, str]:
    """Which family each sample name belongs to: a histogram has three names."""
    out: dict[str, str] = {}
    for family in families:
        if family.kind == "histogram":
            for part in ("bucket", "sum", "count"):
                out[f"{family.name}_{part}"] = family.name
        out[family.name] = family.name
    return out
