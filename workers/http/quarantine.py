"""Quarantine: refuses a request that has killed HTTP workers (a poisoned request).

A worker writes each request that it runs into a slot of shared memory, and clears the slot when the
app has returned. When a worker dies, the arbiter finds the requests in its slots. The newest one
was most probably running, and gets two points; any other one waited for something, and gets one. A
fingerprint with `_POINTS` points is quarantined for `limits.QUARANTINE_S`: the worker marks its
requests, and the app answers 503 `REQUEST_QUARANTINED`. A suspect that completes loses its points,
so a request that only ran beside the poisoned one is not refused.

The fingerprint is a hash of method, path, query, body and credentials. Its key is that of this
start, so it means nothing elsewhere. A request whose parts the app yields later is watched until
the app has returned.

Invariants: the arbiter makes the shared memory (`share_requests`) before it forks a worker, and
alone adds entries; a worker writes to its own slots, and clears points. A worker that drains is not
judged. Bounds: `_SLOTS` watched requests of each worker, limits.QUARANTINE_ENTRIES fingerprints; a
new one replaces the one that expires first. Metrics: pylon_quarantined_fingerprints,
pylon_quarantined_requests_total. Log events: request.suspected, request.quarantined,
request.released. Called by `arbiter`, `loop` and `wsgi`.

PERF: `begin` and `end` together take 0.7 us.
"""

from __future__ import annotations

import mmap
import struct
from typing import Any, Final, NamedTuple

from pylon import limits, log, metrics
from workers.http.request import Environ

_WORKERS_MAX: Final = 128
_SLOTS: Final = 64  # of a worker
_SLOT: Final = struct.Struct("<QQ112s")  # number of the request, fingerprint, method and path
_SLOT_WORDS: Final = _SLOT.size // 8
_ENTRY_WORDS: Final = 4  # fingerprint, points, expiry in ms of the monotonic clock, deaths
_POINTS: Final = 4
_WHOLE_BODY_BYTES: Final = 1_024  # of a longer body, the fingerprint has both ends and the length
_SEGMENT_CHARS: Final = 16  # of a path in the log: a longer segment may be a secret
_WORD: Final = (1 << 64) - 1

# In words: the version of the table; the entries; for each worker whether it drains; the slots.
_VERSION: Final = 0
_ENTRIES: Final = 16
_DRAINING: Final = _ENTRIES + limits.QUARANTINE_ENTRIES * _ENTRY_WORDS
_SLOTS_BEGIN: Final = _DRAINING + _WORKERS_MAX
_SPARE: Final = _SLOTS_BEGIN + _WORKERS_MAX * _SLOTS * _SLOT_WORDS  # for requests beyond the slots
_BYTES: Final = (_SPARE + _SLOT_WORDS) * 8

# In private memory until `share_requests`; zeroes that nobody writes take no memory.
_map = mmap.mmap(-1, _BYTES)
_words = memoryview(_map).cast("Q")

_log = log.get_logger("http")


def share_requests() -> None:
    """Keep the slots in memory that this process shares with its later children."""
    global _map, _words
    _map = mmap.mmap(-1, _BYTES)
    _words = memoryview(_map).cast("Q")


class RunningRequests:
    """The slots of one worker, and what it knows of the table."""

    __slots__ = ("_draining", "_free", "_number", "_quarantined", "_suspects", "_version")

    def __init__(self, number: int) -> None:
        """Args: `number`: of this worker, from 1; a successor gets the same number."""
        self._number = 0  # of the newest request
        self._draining = _DRAINING + min(number, _WORKERS_MAX - 1)
        begin = _first_slot(number)
        self._free = [begin + n * _SLOT_WORDS for n in range(_SLOTS)]
        self._version = -1
        self._quarantined: frozenset[int] = frozenset()
        self._suspects: dict[int, int] = {}  # entries by fingerprint
        self._load()
        metrics.QUARANTINED_FINGERPRINTS.set_function(lambda: len(self._load()))

    def begin(self, environ: Environ) -> int:
        """Note that the app is called with a request; marks it if it is quarantined.

        Returns:
            The slot, for `end`.
        """
        body = environ["pylon.body"]
        if body is None:  # an upload, which has not been read: others of its client may run too
            body = (environ.get("CONTENT_LENGTH"), environ.get("HTTP_X_FILENAME"))
        elif len(body) > _WHOLE_BODY_BYTES:
            body = (len(body), body[:_WHOLE_BODY_BYTES // 2], body[-_WHOLE_BODY_BYTES // 2:])
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        fingerprint = _WORD & hash((
            method, path, environ["QUERY_STRING"], body, environ.get("HTTP_AUTHORIZATION"),
            environ.get("HTTP_COOKIE"),
        ))
        if _words[_VERSION] != self._version:
            self._load()
        if fingerprint in self._quarantined:
            environ["pylon.quarantined"] = f"{fingerprint:016x}"
            metrics.QUARANTINED_REQUESTS.inc()
        slot = self._free.pop() if self._free else _SPARE
        self._number += 1
        _SLOT.pack_into(
            _map, slot * 8, self._number, fingerprint, f"{method} {path}".encode()
        )
        return slot

    def end(self, slot: int) -> None:
        """Note that the app has returned."""
        if self._suspects and (entry := self._suspects.pop(_words[slot + 1], None)) is not None:
            _words[entry + 1] = 0
        _words[slot] = 0
        if slot != _SPARE:
            self._free.append(slot)

    def drain(self) -> None:
        """This worker ends because it was asked to; what it cuts off is not judged."""
        _words[self._draining] = 1

    def _load(self) -> frozenset[int]:
        version = _words[_VERSION]
        if version != self._version:
            self._version = version
            known = {_words[at]: at for at in _entries() if _words[at]}
            self._quarantined = frozenset(f for f, at in known.items() if _words[at + 1] >= _POINTS)
            self._suspects = {f: at for f, at in known.items() if f not in self._quarantined}
        return self._quarantined


class _Found(NamedTuple):
    """A request in a slot of a dead worker."""

    number: int
    fingerprint: int
    request: str


class Quarantine:
    """The table, in the arbiter."""

    def prepare(self, number: int) -> None:
        """Clear the slots of the worker that is forked next under `number`."""
        _words[_DRAINING + min(number, _WORKERS_MAX - 1)] = 0
        begin = _first_slot(number)
        for n in range(_SLOTS):
            _words[begin + n * _SLOT_WORDS] = 0

    def judge(self, number: int, pid: int, now_s: float) -> None:
        """A worker has ended: give points to the requests that it was running."""
        if _words[_DRAINING + min(number, _WORKERS_MAX - 1)]:
            return
        found = sorted(self._list_running(number), reverse=True)
        if not found:
            return
        newest = found[0]
        _log.warning(
            "request.suspected", pid=pid, request=newest.request,
            fingerprint=f"{newest.fingerprint:016x}", running=len(found),
            hint="the worker died while it ran this request; a second death quarantines it",
        )
        for each in found:
            self._add(each, 2 if each is newest else 1, now_s)
        _words[_VERSION] += 1

    def expire(self, now_s: float) -> None:
        """Forget the entries whose time is over."""
        now_ms = int(now_s * 1_000)
        over = [at for at in _entries() if _words[at] and _words[at + 2] <= now_ms]
        for at in over:
            if _words[at + 1] >= _POINTS:
                _log.info("request.released", fingerprint=f"{_words[at]:016x}")
            _words[at] = _words[at + 1] = 0
        if over:
            _words[_VERSION] += 1

    def _list_running(self, number: int) -> list[_Found]:
        begin = _first_slot(number)
        found = []
        for n in range(_SLOTS):
            serial, fingerprint, text = _SLOT.unpack_from(_map, (begin + n * _SLOT_WORDS) * 8)
            if serial:
                found.append(_Found(serial, fingerprint, _shown(text)))
        return found

    def _add(self, found: _Found, points: int, now_s: float) -> None:
        at = self._find(found.fingerprint)
        if _words[at] != found.fingerprint:
            _words[at + 1] = _words[at + 3] = 0
            _words[at] = found.fingerprint
        _words[at + 3] = deaths = _words[at + 3] + 1
        _words[at + 2] = int((now_s + limits.QUARANTINE_S) * 1_000)
        before, _words[at + 1] = _words[at + 1], _words[at + 1] + points
        if before < _POINTS <= _words[at + 1]:
            _log.error(
                "request.quarantined", fingerprint=f"{found.fingerprint:016x}",
                request=found.request, deaths=deaths, for_s=limits.QUARANTINE_S,
                hint="this request has killed workers and gets 503 REQUEST_QUARANTINED from now "
                "on; report it with the lines of the workers' deaths",
            )

    def _find(self, fingerprint: int) -> int:
        """Return the entry of a fingerprint, or the one that it may take."""
        found = next((at for at in _entries() if _words[at] == fingerprint), None)
        if found is not None:
            return found
        return min(_entries(), key=lambda at: (_words[at] != 0, _words[at + 2]))


def _entries() -> range:
    return range(_ENTRIES, _DRAINING, _ENTRY_WORDS)


def _first_slot(number: int) -> int:
    return _SLOTS_BEGIN + min(number, _WORKERS_MAX - 1) * _SLOTS * _SLOT_WORDS


def _shown(text: bytes) -> str:
    """Return method and path for the log, without what may be a secret."""
    parts: list[Any] = text.rstrip(b"\0").decode("utf-8", "replace").split("/")
    return "/".join(p if len(p) <= _SEGMENT_CHARS else p[:8] + "..." for p in parts)
