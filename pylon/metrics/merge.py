"""Many workers' snapshots as one set of families.

A snapshot has the families that have changed since the worker's last one. Counters and histograms
are summed over the processes of a role and never go back: the sums of a dead worker stay in its
role. A bucket has the newest exemplar of the live workers. Gauges have the label `worker` and
vanish with it. The supervisor keeps one `Merged`; it is not thread-safe by itself, the caller holds
a lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pylon.metrics.wire import Family, Sample, SampleExemplar

_LabelKey = tuple[tuple[str, str], ...]
_Exemplars = dict[tuple[str, str, _LabelKey], SampleExemplar]  # by role, sample name and labels
_Sums = dict[tuple[str, _LabelKey], float]  # by sample name and labels
_SHARED_WITH_SUPERVISOR = (
    "pylon_bus_messages_total", "pylon_bus_messages_dropped_total", "pylon_policy_lookups_total",
    "pylon_policy_lookup_seconds_total",
)


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


class _Live:
    """The newest families of one live worker, by name."""

    __slots__ = ("families", "pid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.families: dict[str, Family] = {}


class Merged:
    """The newest families of each live worker, and the sums of the dead ones."""

    __slots__ = ("_dead", "_known", "_live")

    def __init__(self) -> None:
        self._live: dict[tuple[str, str], _Live] = {}  # by role and worker
        self._dead: dict[str, _Sums] = {}  # by role
        self._known: dict[str, Family] = {}  # name, help and kind of each family ever seen

    def update(self, status: Heartbeat) -> None:
        """Take a heartbeat. One from a new process of the same name retires the old one."""
        key = (status.role, status.worker)
        live = self._live.get(key)
        if live is not None and live.pid != status.pid:
            self.forget(*key)
            live = None
        if live is None:
            live = self._live[key] = _Live(status.pid)
        for family in status.metrics:
            self._known.setdefault(family.name, family)
            live.families[family.name] = family

    def forget(self, role: str, worker: str) -> None:
        """Keep the sums of a worker that is gone, drop its gauges."""
        live = self._live.pop((role, worker), None)
        if live is not None:
            sums = self._dead.setdefault(role, {})
            for family in live.families.values():
                if family.kind != "gauge":
                    _add(sums, family.samples)

    def families(self, own: Iterable[Family] = ()) -> list[Family]:
        """Return all families in the order first seen, with `own`, the supervisor's."""
        roles: dict[str, _Sums] = {role: dict(sums) for role, sums in self._dead.items()}
        gauges: dict[str, list[Sample]] = {}
        exemplars: _Exemplars = {}
        for (role, worker), live in self._live.items():
            for family in live.families.values():
                if family.kind == "gauge":
                    gauges.setdefault(family.name, []).extend(_labelled(family, role, worker))
                else:
                    _add(roles.setdefault(role, {}), family.samples)
                    if family.kind == "histogram":
                        _take_newest(exemplars, role, family.samples)
        by_family: dict[str, list[Sample]] = {name: [] for name in self._known}
        for name, samples in gauges.items():
            by_family[name].extend(samples)
        owner = _owners(self._known.values())
        for role, sums in roles.items():
            for (name, labels), value in sums.items():
                sample = Sample(
                    name, {**dict(labels), "role": role}, value, exemplars.get((role, name, labels))
                )
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


def _take_newest(exemplars: _Exemplars, role: str, samples: Iterable[Sample]) -> None:
    for sample in samples:
        found = sample.exemplar
        if found is not None:
            key = (role, sample.name, tuple(sample.labels.items()))
            known = exemplars.get(key)
            if known is None or known.unix_s < found.unix_s:
                exemplars[key] = found


def _labelled(family: Family, role: str, worker: str) -> list[Sample]:
    return [
        Sample(s.name, {**s.labels, "role": role, "worker": worker}, s.value)
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
