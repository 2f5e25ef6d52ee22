"""Replays: records the inputs of a shard, and runs a recording again to the same states.

A recording is a file of JSON lines. The first line holds the start of the simulation. Each other
line holds a subscriber who joined or left after a tick, the inputs of a tick, or a digest of the
shared snapshot. A digest follows every `DIGEST_EVERY_TICKS`, and the end:

    {"v":1,"id":"arena:42","name":"arena","params":{},"seed":7,"dt_s":0.05,"saved":null}
    {"t":0,"joined":"ada","auth":[…]}
    {"t":3,"dt_s":0.05,"inputs":[["ada",{…}]]}
    {"t":100,"digest":"…"}

Invariants: a tick without a line had no inputs and the usual step. A write error ends the recording
(`error`), not the shard. The replay ends without an error at a line that a crash cut short.
Bound: a file never exceeds the kind's `record_bytes`; a last line `full` marks a recording that
would have.

`workers.shards` records; `pylonctl replay` replays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from pylon.auth_context import AuthContext
from pylon.errors import RecordingInvalid
from pylon.realtime.kinds import Kind
from pylon.realtime.simulation import Saved, Simulation
from pylon.realtime.state import ShardContext

VERSION: Final = 1
DIGEST_EVERY_TICKS: Final = 100
_LAST_BYTES: Final = 200  # reserved for the last line


class Beginning(msgspec.Struct, frozen=True):
    """The first line."""

    v: int
    id: str
    name: str
    params: dict[str, Any]
    seed: int
    dt_s: float  # of a tick without a line
    saved: bytes | None  # MessagePack of the `Saved` that the simulation went on from


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Any other line: an event at tick `t`, or after it."""

    t: int
    joined: str | None = None
    auth: AuthContext | None = None
    left: str | None = None
    dt_s: float | None = None
    inputs: list[tuple[str, msgspec.Raw]] | None = None
    digest: str | None = None
    full: bool = False
    end: bool = False


_encoder: Final = msgspec.json.Encoder()
_lines: Final = msgspec.json.Decoder(Line)


class Recording:
    """A `pylon.realtime.recorder.Recorder` that writes into a file."""

    __slots__ = ("_dt_s", "_file", "_path", "_remaining_bytes", "error", "is_full")

    def __init__(
        self, path: Path, kind: Kind, context: ShardContext, saved: Saved | None = None
    ) -> None:
        """Begin a file, and overwrite an existing one.

        Raises:
            OSError: the file cannot be opened for writing.
        """
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._remaining_bytes = kind.config.record_bytes - _LAST_BYTES
        self._dt_s = 0.0 if kind.is_event_driven else kind.interval_s
        self.is_full = False
        self.error: OSError | None = None  # the write error that ended the recording
        saved_bytes = None if saved is None else msgspec.msgpack.encode(saved)
        self._write_unless_full(Beginning(
            VERSION, context.id, context.name, dict(context.params), context.seed, self._dt_s,
            saved_bytes,
        ))

    def joined(self, tick: int, sid: str, auth: AuthContext) -> None:
        """`Recorder.joined`."""
        self._write_unless_full(Line(tick, joined=sid, auth=auth))

    def left(self, tick: int, sid: str) -> None:
        """`Recorder.left`."""
        self._write_unless_full(Line(tick, left=sid))

    def ticking(self, tick: int, dt_s: float, inputs: Sequence[tuple[str, Any]]) -> None:
        """`Recorder.ticking`."""
        if (inputs or dt_s != self._dt_s) and not self.is_full:
            encoded = [(sid, msgspec.Raw(_encoder.encode(value))) for sid, value in inputs]
            self._write_unless_full(Line(tick, dt_s=dt_s, inputs=encoded))

    def ticked(self, simulation: Simulation) -> None:
        """`Recorder.ticked`."""
        if simulation.tick % DIGEST_EVERY_TICKS == 0 and not self.is_full:
            self._write_unless_full(Line(simulation.tick, digest=simulation.digest()))

    def stopped(self, tick: int, digest: str | None) -> None:
        """`Recorder.stopped`: write the last line, and close the file."""
        if self._file.closed:
            return
        if not self.is_full:
            self._write(Line(tick, digest=digest, end=True))
        try:
            self._file.close()
        except OSError as ex:  # the disk is too full for the buffered lines
            self.error = ex

    def discard(self) -> None:
        """Remove the file, because the recording is not wanted."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Write the buffered lines to the kernel."""
        if not self._file.closed:
            self._file.flush()

    def _write_unless_full(self, line: Beginning | Line) -> None:
        if not self.is_full:
            self._write(line)

    def _write(self, line: Beginning | Line) -> None:
        data = _encoder.encode(line) + b"\n"
        self._remaining_bytes -= len(data)
        if self._remaining_bytes < 0:
            self.is_full = True
            data = _encoder.encode(Line(line.t if isinstance(line, Line) else 0, full=True)) + b"\n"
        try:
            self._file.write(data)
        except OSError as ex:  # a full disk ends the recording, not the shard
            self.error = ex
            self.is_full = True


class Outcome(msgspec.Struct, frozen=True):
    """Result of a replay."""

    id: str
    ticks: int
    inputs: int
    digests: int  # compared, and equal
    differs_at: int | None  # the first tick whose digest differs
    ended: str  # end of the recording: "end", "full" or "cut"
    snapshot: Any  # after the last tick


def read_beginning(path: Path) -> Beginning:
    """Return the first line of a recording.

    Raises:
        RecordingInvalid: the file is no recording, or has another version.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        first = file.readline()
    try:
        beginning = msgspec.json.decode(first, type=Beginning)
    except msgspec.MsgspecError as ex:
        raise RecordingInvalid(f"{path} is no recording of a shard: {ex}") from ex
    if beginning.v != VERSION:
        raise RecordingInvalid(
            f"{path} is a recording of version {beginning.v}; this Pylon reads {VERSION}"
        )
    return beginning


def replay(path: Path, kind: Kind) -> Outcome:
    """Run a recording again, from its beginning to its end or to the first difference.

    Raises:
        RecordingInvalid: a line is malformed or out of order, or an input is not of the kind's
            type.
        OSError: the file cannot be read.
    """
    beginning = read_beginning(path)
    saved = None if beginning.saved is None else msgspec.msgpack.decode(beginning.saved, type=Saved)
    simulation = Simulation(
        kind, ShardContext(beginning.id, beginning.name, beginning.params, beginning.seed), saved
    )
    inputs = digests = 0
    ended = "cut"
    differs_at = None
    for number, line in _read_lines(path):
        _run_to_line(simulation, beginning, line, number)
        if line.joined is not None:
            simulation.state.joined(line.joined, line.auth or AuthContext())
        elif line.left is not None:
            simulation.state.left(line.left)
        elif line.inputs is not None:
            inputs_of_tick = [(sid, _decode_input(kind, raw, number)) for sid, raw in line.inputs]
            simulation.advance(inputs_of_tick, beginning.dt_s if line.dt_s is None else line.dt_s)
            inputs += len(inputs_of_tick)
        if line.digest is not None:
            if line.digest != simulation.digest():
                differs_at = simulation.tick
                break
            digests += 1
        if line.end or line.full:
            ended = "end" if line.end else "full"
            break
    first_tick = 0 if saved is None else saved.tick
    return Outcome(
        beginning.id, simulation.tick - first_tick, inputs, digests, differs_at, ended,
        simulation.state.snapshot(),
    )


def _run_to_line(simulation: Simulation, beginning: Beginning, line: Line, number: int) -> None:
    """Run the ticks without a line, up to the tick of this line."""
    until = line.t - 1 if line.inputs is not None else line.t
    if line.full:
        until = min(until, simulation.tick)
    if until < simulation.tick and not line.full:
        raise RecordingInvalid(f"line {number}: tick {line.t} comes after {simulation.tick}")
    while simulation.tick < until:
        simulation.advance((), beginning.dt_s)


def _read_lines(path: Path) -> Iterator[tuple[int, Line]]:
    with path.open("rb") as file:
        file.readline()
        for number, text in enumerate(file, 2):
            if not text.endswith(b"\n"):
                return  # the process died while it wrote
            try:
                yield number, _lines.decode(text)
            except msgspec.MsgspecError as ex:
                raise RecordingInvalid(f"{path}: line {number}: {ex}") from ex


def _decode_input(kind: Kind, raw: msgspec.Raw, number: int) -> Any:
    try:
        return kind.json_input.decode(raw)
    except msgspec.MsgspecError as ex:
        raise RecordingInvalid(
            f"line {number}: an input is not of the type of shard \"{kind.name}\": {ex}"
        ) from ex
