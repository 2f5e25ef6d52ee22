"""Hint journal: the cursor notes of all HTTP workers, in a file that outlives each of them.

The file lies in the runtime folder. It has a header, which names the boot of the machine, and
slots: rings of `limits.NOTES_KEPT` records. Each HTTP worker writes into a slot of its own. Slot
0 is the supervisor's, which carries notes over from the run before (`supervisor.hints`). A worker
writes a record of 32 bytes with one `pwrite` before it answers a pull. So a client that has its
answer has its note, whichever process dies next. A hub reads new records before it admits a client.

A worker may die before it writes the note of a pull, and published clients connect all the same.
So a slot shows whether its writer has ended in order: a slot opens with a record and ends with
one, and its lock tells a reader when the last record is missing.

Invariants: a slot has one writer, by a record lock that ends with its process. A record's first
number is its position xored with the others, so a torn or stale record is not taken for the next
one. A reader calls `CursorHints.lose` when a ring overtook it, when a writer has died, and when it
finds a record of such a loss. Times are CLOCK_MONOTONIC, which all processes of a boot share.

Bounds: `limits.NOTES_KEPT` records of 32 bytes for each slot; the oldest is overwritten.
Written by `pylon.api.sync.hints` and the supervisor, read by `workers.hub.start_cursors`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from pylon import limits
from pylon.changelog.hints import CursorHints
from pylon.clock import Clock
from pylon.errors import StoreUnavailable

NO_KEY: Final = 0  # of a record that is no note; its cursor says what it is
LOST: Final = 0  # notes from before its time may be missing
_OPENED: Final = 1  # a writer begins
_CLOSED: Final = 2  # it has written all that it had to
SUPERVISOR_SLOT: Final = 0
_SPARE_SLOTS: Final = 3  # the supervisor's, and for workers whose predecessor still dies
_HEADER_BYTES: Final = 64
_RECORD: Final = Struct("<QQQQ")  # check, key, cursor, microseconds
_FLOCK: Final = Struct("hhqqi4x")  # struct flock
_US_PER_S: Final = 1_000_000
_READ_RECORDS: Final = 64
_SCAN_RECORDS: Final = 8_192


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
        """The records from `position` on, some at a time; and whether the ring overtook it."""
        left = self._capacity - (position - 1) % self._capacity
        data = os.pread(
            self._fd, min(left, _READ_RECORDS) * _RECORD.size, self._offset(position)
        )
        found: list[Hint] = []
        for check, key, cursor, at_us in _whole_records(data):
            at = check ^ key ^ cursor ^ at_us
            if at != position:
                overtaken = at > position and (at - position) % self._capacity == 0
                return found, overtaken
            found.append(Hint(key, cursor, at_us))
            position += 1
        return found, False

    def scan(self) -> tuple[list[Hint], int]:
        """Every record, in the order of writing, and the position of the next."""
        found: list[tuple[int, Hint]] = []
        for first in range(0, self._capacity, _SCAN_RECORDS):
            count = min(_SCAN_RECORDS, self._capacity - first)
            data = os.pread(self._fd, count * _RECORD.size, self._base + first * _RECORD.size)
            before = len(found)
            for index, (check, key, cursor, at_us) in enumerate(_whole_records(data), first):
                position = check ^ key ^ cursor ^ at_us
                if position > 0 and (position - 1) % self._capacity == index:
                    found.append((position, Hint(key, cursor, at_us)))
            if len(found) == before:  # the ring has never been written this far
                break
        found.sort()
        return [note for _, note in found], found[-1][0] + 1 if found else 1

    def _offset(self, position: int) -> int:
        return self._base + (position - 1) % self._capacity * _RECORD.size


class HintWriter:
    """Appends to one slot. `put` has the form that `pylon.api.sync.hints` wants."""

    __slots__ = ("_clock", "_fd", "_next", "_ring")

    def __init__(
        self, path: Path, http_workers: int, clock: Clock, slot: int | None = None,
        capacity: int = limits.NOTES_KEPT,
    ) -> None:
        """Open the file, and make it if it is not there.

        Args:
            slot: the one to take; None: the first that no process holds.

        Raises:
            OSError: the folder is full, or all slots are taken.
        """
        self._clock = clock
        self._fd = _open(path)
        slots = range(1, slots_for(http_workers)) if slot is None else (slot,)
        self._ring = _Ring(self._fd, _lock_first(self._fd, slots), capacity)
        found, self._next = self._ring.scan()
        if _is_left_open(found):
            self.put(NO_KEY, LOST)
        self.put(NO_KEY, _OPENED)

    def put(self, key: int, cursor: int) -> None:
        """Append a note of this moment.

        Raises:
            StoreUnavailable: the file cannot be written to; the pull must not be answered.
        """
        self.put_note(Hint(key, cursor, now_us(self._clock)))

    def put_note(self, note: Hint) -> None:
        """Append a note of an earlier time."""
        try:
            self._ring.write(self._next, *note)
        except OSError as ex:
            raise StoreUnavailable(
                f"The runtime folder cannot be written to: {ex.strerror}",
                hint="Free space in PYLON_RUNTIME_DIR",
            ) from ex
        self._next += 1

    def close(self) -> None:
        """End in order: no pull waits for its answer any more."""
        self.put(NO_KEY, _CLOSED)
        os.close(self._fd)


class HintReader:
    """Reads all slots into `notes`, from the beginning and then what is new."""

    __slots__ = ("_capacity", "_clock", "_fd", "_next_positions", "_open_slots", "_rings", "notes")

    def __init__(
        self, path: Path, http_workers: int, clock: Clock, notes: CursorHints,
        capacity: int = limits.NOTES_KEPT,
    ) -> None:
        """Open the file, and make it if it is not there."""
        self._clock = clock
        self._capacity = capacity
        self._fd = _open(path)
        self._rings = [
            _Ring(self._fd, slot, capacity) for slot in range(slots_for(http_workers))
        ]
        self._next_positions = [0] * len(self._rings)  # 0: not read yet
        self._open_slots: set[int] = set()  # whose writers have not ended in order
        self.notes = notes

    def refresh(self) -> None:
        """Read the records since the last call. Never switches greenlets."""
        for slot, ring in enumerate(self._rings):
            position = self._next_positions[slot]
            if not position:
                self._next_positions[slot] = self._scan(slot, ring)
                continue
            while True:
                found, overtaken = ring.read(position)
                for note in found:
                    self._take(slot, note)
                position += len(found)
                if overtaken:
                    position = self._scan(slot, ring)
                    self.notes.lose(self._clock.monotonic_s())
                if overtaken or not found:
                    break
            self._next_positions[slot] = position
        for slot in [slot for slot in self._open_slots if not _is_locked(self._fd, slot)]:
            self._open_slots.discard(slot)
            self.notes.lose(self._clock.monotonic_s())

    def _scan(self, slot: int, ring: _Ring) -> int:
        found, position = ring.scan()
        for note in found:
            self._take(slot, note)
        if position > self._capacity:  # older ones are gone
            self.notes.lose(min(note.at_us for note in found) / _US_PER_S)
        return position

    def _take(self, slot: int, note: Hint) -> None:
        if note.key == NO_KEY:
            if note.cursor == LOST:
                self.notes.lose(note.at_us / _US_PER_S)
            elif note.cursor == _OPENED:
                self._open_slots.add(slot)
            else:
                self._open_slots.discard(slot)
            return
        if slot != SUPERVISOR_SLOT:
            self._open_slots.add(slot)  # the record that says so may be overwritten
        age_s = max(0.0, self._clock.monotonic_s() - note.at_us / _US_PER_S)
        self.notes.put(note.key, note.cursor, age_s)

    def close(self) -> None:
        os.close(self._fd)


def slots_for(http_workers: int) -> int:
    """How many slots a journal has."""
    return http_workers + _SPARE_SLOTS


def now_us(clock: Clock) -> int:
    """The time of a note that is put now."""
    return int(clock.monotonic_s() * _US_PER_S)


def make_journal(
    path: Path, boot_id: str, notes: Iterable[Hint], clock: Clock,
    capacity: int = limits.NOTES_KEPT,
) -> None:
    """Make a new file with `notes` in the supervisor's slot. Nobody may have the file open."""
    path.unlink(missing_ok=True)
    fd = _open(path)
    try:
        os.pwrite(fd, boot_id.encode()[:_HEADER_BYTES].ljust(_HEADER_BYTES), 0)
        ring = _Ring(fd, SUPERVISOR_SLOT, capacity)
        for position, note in enumerate(notes, 1):
            if position == capacity:  # one place is left for what this says
                ring.write(position, NO_KEY, LOST, now_us(clock))
                break
            ring.write(position, *note)
    finally:
        os.close(fd)


def read_journal(
    path: Path, now: int, capacity: int = limits.NOTES_KEPT
) -> tuple[str, list[Hint]] | None:
    """The boot that a file was made in, and its notes, each key with its smallest cursor and its
    newest time; None if there is no such file. Where some may be missing, a record says so.

    Args:
        now: the time of that record where a writer has died.

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
                found.append(Hint(NO_KEY, LOST, min(note.at_us for note in found)))
            if slot != SUPERVISOR_SLOT and _is_left_open(found):
                found.append(Hint(NO_KEY, LOST, now))
            for note in found:
                if note.key == NO_KEY and note.cursor != LOST:
                    continue
                known = kept.get(note.key, note)
                kept[note.key] = Hint(
                    note.key, min(note.cursor, known.cursor), max(note.at_us, known.at_us)
                )
    finally:
        os.close(fd)
    return boot_id, list(kept.values())


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_left_open(records: Sequence[Hint]) -> bool:
    """Whether the last writer of a slot did not end in order."""
    return bool(records) and (records[-1].key, records[-1].cursor) != (NO_KEY, _CLOSED)


def _is_locked(fd: int, slot: int) -> bool:
    """Whether a process holds the slot."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def _lock_first(fd: int, slots: Iterable[int]) -> int:
    """The first slot of `slots` that is free. It is held until the process closes the file."""
    for slot in slots:
        try:
            # Of the open file, and not of the process as `lockf` would have it.
            fcntl.fcntl(
                fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, slot, 1, 0)
            )
        except BlockingIOError:
            continue
        return slot
    raise BlockingIOError("every slot of the note journal is taken")


def _whole_records(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    return _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size])
