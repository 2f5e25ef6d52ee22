"""Hint journal: the cursor hints of all HTTP workers, in a file that outlives each of them.

The file lies in the runtime folder. It has a header with the machine's boot id, and slots: rings of
`limits.HINTS_KEPT` records. Each HTTP worker writes into its own slot. Slot 0 is the supervisor's
and carries the hints of the previous run (`supervisor.hints`). A worker writes a record of 32 bytes
with one `pwrite` before it answers a pull. So the hint of every answered pull is in the file,
whichever process dies next. A hub reads new records before it admits a client.

A worker may die before it writes the hint of a pull, and published clients connect all the same.
So each writer begins and ends with a record in its slot. A slot with hints but without the last
record, whose lock is free, belongs to a writer that died.

Invariants: a slot has one writer, because its record lock ends with the process. The first number
of a record is its position xored with the other three, so a reader skips torn and stale records. A
reader calls `CursorHints.mark_incomplete` when a ring overtook it, when a writer has died, and when
it finds a record `INCOMPLETE`. Times are CLOCK_MONOTONIC, which all processes of a boot share.

Bounds: `limits.HINTS_KEPT` records of 32 bytes for each slot; a writer overwrites the oldest.
`limits.HINT_SLOTS` slots; a file has those that were ever used at the same time.
Called by `workers.http.process`, `workers.hub.service`, `workers.hub.start_cursors` and
`supervisor.hints`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from pylon import limits
from pylon.clock import Clock
from pylon.errors import StoreUnavailable

NO_KEY: Final = 0  # the key of a record that is no hint; its cursor is one of the next three
INCOMPLETE: Final = 0  # hints from before the time of this record may be missing
_OPENED: Final = 1  # a writer has begun
_CLOSED: Final = 2  # the writer has written all its hints
SUPERVISOR_SLOT: Final = 0
_HEADER_BYTES: Final = 64
_RECORD: Final = Struct("<QQQQ")  # check, key, cursor, microseconds
_FLOCK: Final = Struct("hhqqi4x")  # struct flock
_US_PER_S: Final = 1_000_000
_READ_RECORDS: Final = 64
_SCAN_RECORDS: Final = 512


class Hint(NamedTuple):
    """A record of the journal."""

    key: int
    cursor: int
    at_us: int


class _Ring:
    """The records of one slot."""

    __slots__ = ("_base", "_capacity", "_fd")

    def __init__(self, fd: int, slot: int, capacity: int) -> None:
        self._fd = fd
        self._capacity = capacity
        self._base = _HEADER_BYTES + slot * capacity * _RECORD.size

    def write(self, position: int, key: int, cursor: int, at_us: int) -> None:
        data = _RECORD.pack(position ^ key ^ cursor ^ at_us, key, cursor, at_us)
        os.pwrite(self._fd, data, self._offset(position))

    def read(self, position: int) -> tuple[list[Hint], bool]:
        """Return up to 64 records from `position` on, and whether the ring overtook it."""
        left = self._capacity - (position - 1) % self._capacity
        data = os.pread(
            self._fd, min(left, _READ_RECORDS) * _RECORD.size, self._offset(position)
        )
        hints: list[Hint] = []
        for check, key, cursor, at_us in _whole_records(data):
            written = check ^ key ^ cursor ^ at_us
            if written != position:
                overtaken = written > position and (written - position) % self._capacity == 0
                return hints, overtaken
            hints.append(Hint(key, cursor, at_us))
            position += 1
        return hints, False

    def scan(self) -> tuple[list[Hint], int]:
        """Return every record, in the order of writing, and the position of the next."""
        found: list[tuple[int, Hint]] = []
        for first in range(0, self._capacity, _SCAN_RECORDS):
            count = min(_SCAN_RECORDS, self._capacity - first)
            data = os.pread(self._fd, count * _RECORD.size, self._base + first * _RECORD.size)
            before = len(found)
            for index, (check, key, cursor, at_us) in enumerate(_whole_records(data), first):
                position = check ^ key ^ cursor ^ at_us
                if position > 0 and (position - 1) % self._capacity == index:
                    found.append((position, Hint(key, cursor, at_us)))
            if len(found) == before:  # no writer has come this far
                break
        found.sort()
        return [hint for _, hint in found], found[-1][0] + 1 if found else 1

    def _offset(self, position: int) -> int:
        return self._base + (position - 1) % self._capacity * _RECORD.size


class HintWriter:
    """Appends to one slot. `put` is the `write` of `pylon.api.sync.hints.HintPublisher`."""

    __slots__ = ("_clock", "_fd", "_next", "_ring")

    def __init__(
        self, path: Path, clock: Clock, slot: int | None = None,
        capacity: int = limits.HINTS_KEPT, *, continues: bool = False,
    ) -> None:
        """Open the file, or create it, and lock a slot.

        Args:
            slot: the slot to lock; None locks the first free slot of a worker.
            continues: what the slot has is whole, and is continued.

        Raises:
            OSError: the folder is full, or other processes hold all slots.
        """
        self._clock = clock
        self._fd = _open(path)
        slots = range(1, limits.HINT_SLOTS) if slot is None else (slot,)
        self._ring = _Ring(self._fd, _lock_first(self._fd, slots), capacity)
        found, self._next = self._ring.scan()
        if not continues and _is_left_open(found):
            self.put(NO_KEY, INCOMPLETE)
        self.put(NO_KEY, _OPENED)

    def put(self, key: int, cursor: int) -> None:
        """Append a hint of this moment.

        Raises:
            StoreUnavailable: the write failed. The caller must not answer the pull.
        """
        self.put_hint(Hint(key, cursor, now_us(self._clock)))

    def put_hint(self, hint: Hint) -> None:
        """Append a hint of an earlier time. Raises: as `put`."""
        try:
            self._ring.write(self._next, *hint)
        except OSError as ex:
            raise StoreUnavailable(
                f"The runtime folder cannot be written to: {ex.strerror}",
                hint="Free space in PYLON_RUNTIME_DIR",
            ) from ex
        self._next += 1

    def close(self) -> None:
        """Write the last record. Call it when every pull has its answer."""
        self.put(NO_KEY, _CLOSED)
        os.close(self._fd)


class HintSink(Protocol):
    """The target of a reader: `CursorHints`, or an object that hands hints on."""

    def put(self, key: int, cursor: int, age_s: float = 0.0) -> bool:
        """Add a hint."""

    def mark_incomplete(self, before_s: float) -> None:
        """Record that hints from before this time (monotonic) may be missing."""


_Hints = TypeVar("_Hints", bound=HintSink)


class HintReader(Generic[_Hints]):
    """Reads all slots into `hints`: first every record, later the new ones only."""

    __slots__ = (
        "_capacity", "_clock", "_fd", "_first_slot", "_next_positions", "_open_slots", "_rings",
        "hints",
    )

    def __init__(
        self, path: Path, clock: Clock, hints: _Hints,
        capacity: int = limits.HINTS_KEPT, *, own_only: bool = False,
    ) -> None:
        """Open the file, or create it.

        Args:
            own_only: leave out the supervisor's slot, which has hints of other runs and nodes.
        """
        self._clock = clock
        self._first_slot = SUPERVISOR_SLOT + own_only
        self._capacity = capacity
        self._fd = _open(path)
        self._rings: list[_Ring] = []  # of the slots that were ever used
        self._next_positions: list[int] = []  # 0: not scanned yet
        self._open_slots: set[int] = set()  # slots whose writer has not written `_CLOSED`
        self.hints = hints

    def refresh(self) -> None:
        """Read the records since the last call. Never switches greenlets."""
        self._find_slots()
        for slot, ring in enumerate(self._rings[self._first_slot :], self._first_slot):
            position = self._next_positions[slot]
            if not position:
                self._next_positions[slot] = self._scan(slot, ring)
                continue
            while True:
                found, overtaken = ring.read(position)
                for hint in found:
                    self._apply(slot, hint)
                position += len(found)
                if overtaken:
                    position = self._scan(slot, ring)
                    self.hints.mark_incomplete(self._clock.monotonic_s())
                if overtaken or not found:
                    break
            self._next_positions[slot] = position
        for slot in [slot for slot in self._open_slots if not _is_locked(self._fd, slot)]:
            self._open_slots.discard(slot)
            self.hints.mark_incomplete(self._clock.monotonic_s())

    def _find_slots(self) -> None:
        """Add the slots that writers have used since the last call: the file then is longer."""
        size_bytes = os.fstat(self._fd).st_size - _HEADER_BYTES
        used = -(-size_bytes // (self._capacity * _RECORD.size))
        for slot in range(len(self._rings), used):
            self._rings.append(_Ring(self._fd, slot, self._capacity))
            self._next_positions.append(0)

    def _scan(self, slot: int, ring: _Ring) -> int:
        found, position = ring.scan()
        for hint in found:
            self._apply(slot, hint)
        if position > self._capacity:  # the writer has overwritten older records
            self.hints.mark_incomplete(min(hint.at_us for hint in found) / _US_PER_S)
        return position

    def _apply(self, slot: int, hint: Hint) -> None:
        if hint.key == NO_KEY:
            if hint.cursor == INCOMPLETE:
                self.hints.mark_incomplete(hint.at_us / _US_PER_S)
            elif hint.cursor == _OPENED:
                self._open_slots.add(slot)
            else:
                self._open_slots.discard(slot)
            return
        if slot != SUPERVISOR_SLOT:
            self._open_slots.add(slot)  # the record `_OPENED` may be overwritten
        age_s = max(0.0, self._clock.monotonic_s() - hint.at_us / _US_PER_S)
        self.hints.put(hint.key, hint.cursor, age_s)

    def close(self) -> None:
        os.close(self._fd)


def now_us(clock: Clock) -> int:
    """Return the time of a hint that is written now, in microseconds."""
    return int(clock.monotonic_s() * _US_PER_S)


def make_journal(
    path: Path, boot_id: str, hints: Iterable[Hint], clock: Clock,
    capacity: int = limits.HINTS_KEPT,
) -> None:
    """Create the file anew with `hints` in the supervisor's slot. No process may have it open."""
    path.unlink(missing_ok=True)
    fd = _open(path)
    try:
        os.pwrite(fd, boot_id.encode()[:_HEADER_BYTES].ljust(_HEADER_BYTES), 0)
        ring = _Ring(fd, SUPERVISOR_SLOT, capacity)
        for position, hint in enumerate(hints, 1):
            if position == capacity:  # the last record tells that hints are missing
                ring.write(position, NO_KEY, INCOMPLETE, now_us(clock))
                break
            ring.write(position, *hint)
    finally:
        os.close(fd)


def read_journal(
    path: Path, now: int, capacity: int = limits.HINTS_KEPT
) -> tuple[str, list[Hint]] | None:
    """Return the boot id of a file and its hints; None if the file does not exist.

    Each key has one hint, with its smallest cursor and its newest time. If hints may be missing,
    the list has a record `INCOMPLETE`.

    Args:
        now: the time of that record if a writer has died, in microseconds.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        boot_id = os.pread(fd, _HEADER_BYTES, 0).decode("ascii", "replace").strip("\0 ")
        size_bytes = os.fstat(fd).st_size - _HEADER_BYTES
        slots = -(-max(0, size_bytes) // (capacity * _RECORD.size))
        kept: dict[int, Hint] = {}
        for slot in range(slots):
            found, position = _Ring(fd, slot, capacity).scan()
            if position > capacity:
                found.append(Hint(NO_KEY, INCOMPLETE, min(hint.at_us for hint in found)))
            if slot != SUPERVISOR_SLOT and _is_left_open(found):
                found.append(Hint(NO_KEY, INCOMPLETE, now))
            for hint in found:
                if hint.key == NO_KEY and hint.cursor != INCOMPLETE:
                    continue
                known = kept.get(hint.key, hint)
                kept[hint.key] = Hint(
                    hint.key, min(hint.cursor, known.cursor), max(hint.at_us, known.at_us)
                )
    finally:
        os.close(fd)
    return boot_id, list(kept.values())


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_left_open(records: Sequence[Hint]) -> bool:
    """Whether the last writer of a slot died before its last record."""
    return bool(records) and (records[-1].key, records[-1].cursor) != (NO_KEY, _CLOSED)


def _is_locked(fd: int, slot: int) -> bool:
    """Whether a process holds the lock of the slot."""
    lock = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, lock))[0]
    return kind != fcntl.F_UNLCK


def _lock_first(fd: int, slots: Iterable[int]) -> int:
    """Lock the first free slot of `slots` until the process closes the file; return the slot."""
    for slot in slots:
        try:
            # An OFD lock belongs to the open file; a lock of `lockf` belongs to the process.
            fcntl.fcntl(
                fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
            )
        except BlockingIOError:
            continue
        return slot
    raise BlockingIOError("other processes hold every slot of the hint journal")


def _whole_records(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    return _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size])
