"""Replays: what came into a shard, written down, and run again to the same states.

A recording is a file of JSON lines. The first says how the simulation began; then who came and
went after which tick, the inputs of each tick that had some, and now and then, and at the end,
a digest of what everybody saw:

    {"v":1,"id":"arena:42","name":"arena","params":{},"seed":7,"dt_s":0.05,"saved":null}
    {"t":0,"joined":"ada","auth":[…]}
    {"t":3,"dt_s":0.05,"inputs":[["ada",{…}]]}
    {"t":100,"digest":"…"}

Invariants: the file never grows beyond the kind's `record_bytes`: what would pass it is not
written, and the last line says so. A disk that takes no more ends the recording (`error`) and
not the shard. Ticks without a line had no inputs and the usual step. A
line that a crash cut short ends the replay there, in order.

Recorded by `workers.shards`, run by `pylonctl replay`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_LAST_BYTES: Final = 200  # kept free for the last line


class Beginning(msgspec.Struct, frozen=True):
    """The first line."""

    v: int
    id: str
    name: str
    params: dict[str, Any]
    seed: int
    dt_s: float  # of a tick without a line
    saved: bytes | None  # MessagePack of a `Saved` that it went on from


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Any other line: what happened at tick `t`, or after it."""

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
    """`pylon.realtime.shard.Recorder` into a file."""

    __slots__ = ("_dt_s", "_file", "_left_bytes", "_path", "error", "is_full")

    def __init__(
        self, path: Path, kind: Kind, context: ShardContext, saved: Saved | None = None
    ) -> None:
        """Begin a file, in place of one that is there.

        Raises:
            OSError: it cannot be written.
        """
        self._path = path
        self._file: BinaryIO = path.open("wb")
        self._left_bytes = kind.config.record_bytes - _LAST_BYTES
        self._dt_s = 0.0 if kind.is_event_driven else kind.interval_s
        self.is_full = False
        self.error: OSError | None = None  # why it could not be written on
        packed = None if saved is None else msgspec.msgpack.encode(saved)
        self._put(Beginning(
            VERSION, context.id, context.name, dict(context.params), context.seed, self._dt_s,
            packed,
        ))

    def joined(self, tick: int, sid: str, auth: AuthContext) -> None:
        """`Recorder.joined`."""
        self._put(Line(tick, joined=sid, auth=auth))

    def left(self, tick: int, sid: str) -> None:
        """`Recorder.left`."""
        self._put(Line(tick, left=sid))

    def ticking(self, tick: int, dt_s: float, inputs: Sequence[tuple[str, Any]]) -> None:
        """`Recorder.ticking`."""
        if (inputs or dt_s != self._dt_s) and not self.is_full:
            coded = [(sid, msgspec.Raw(_encoder.encode(value))) for sid, value in inputs]
            self._put(Line(tick, dt_s=dt_s, inputs=coded))

    def ticked(self, simulation: Simulation) -> None:
        """`Recorder.ticked`."""
        if simulation.tick % DIGEST_EVERY_TICKS == 0 and not self.is_full:
            self._put(Line(simulation.tick, digest=simulation.digest()))

    def stopped(self, tick: int, digest: str | None) -> None:
        """`Recorder.stopped`: the last line, and the end of the file."""
        if self._file.closed:
            return
        if not self.is_full:
            self._write(Line(tick, digest=digest, end=True))
        try:
            self._file.close()
        except OSError as ex:  # what was buffered has found no room
            self.error = ex

    def discard(self) -> None:
        """Remove the file: there was nothing to record."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def flush(self) -> None:
        """Give what is written so far to the kernel."""
        if not self._file.closed:
            self._file.flush()

    def _put(self, line: Beginning | Line) -> None:
        if not self.is_full:
            self._write(line)

    def _write(self, line: Beginning | Line) -> None:
        data = _encoder.encode(line) + b"\n"
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self.is_full = True
            data = _encoder.encode(Line(line.t if isinstance(line, Line) else 0, full=True)) + b"\n"
        try:
            self._file.write(data)
        except OSError as ex:  # a full disk ends the recording, not the game
            self.error = ex
            self.is_full = True


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a replay came to."""

    id: str
    ticks: int
    inputs: int
    digests: int  # compared, and equal
    differs_at: int | None  # the first tick whose digest is another one
    ended: str  # "end", "full" or "cut": how the recording ends
    snapshot: Any  # of the last tick


def beginning_of(path: Path) -> Beginning:
    """The first line of a recording.

    Raises:
        RecordingInvalid: it is none.
        OSError: it cannot be read.
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
        RecordingInvalid: a line makes no sense, or an input is not of the kind's type.
        OSError: the file cannot be read.
    """
    start = beginning_of(path)
    saved = None if start.saved is None else msgspec.msgpack.decode(start.saved, type=Saved)
    simulation = Simulation(
        kind, ShardContext(start.id, start.name, start.params, start.seed), saved
    )
    inputs = digests = 0
    ended = "cut"
    differs_at = None
    for number, line in _lines_of(path):
        _catch_up(simulation, start, line, number)
        if line.joined is not None:
            simulation.state.joined(line.joined, line.auth or AuthContext())
        elif line.left is not None:
            simulation.state.left(line.left)
        elif line.inputs is not None:
            told = [(sid, _input_of(kind, raw, number)) for sid, raw in line.inputs]
            simulation.advance(told, start.dt_s if line.dt_s is None else line.dt_s)
            inputs += len(told)
        if line.digest is not None:
            if line.digest != simulation.digest():
                differs_at = simulation.tick
                break
            digests += 1
        if line.end or line.full:
            ended = "end" if line.end else "full"
            break
    begun = 0 if saved is None else saved.tick
    return Outcome(
        start.id, simulation.tick - begun, inputs, digests, differs_at, ended,
        simulation.state.snapshot(),
    )


def _catch_up(simulation: Simulation, start: Beginning, line: Line, number: int) -> None:
    """Do the ticks that have no line, up to the one that this line is about."""
    until = line.t - 1 if line.inputs is not None else line.t
    if line.full:
        until = min(until, simulation.tick)
    if until < simulation.tick and not line.full:
        raise RecordingInvalid(f"line {number}: tick {line.t} comes after {simulation.tick}")
    while simulation.tick < until:
        simulation.advance((), start.dt_s)


def _lines_of(path: Path) -> Iterator[tuple[int, Line]]:
    with path.open("rb") as file:
        file.readline()
        for number, text in enumerate(file, 2):
            if not text.endswith(b"\n"):
                return  # the process died while it wrote
            try:
                yield number, _lines.decode(text)
            except msgspec.MsgspecError as ex:
                raise RecordingInvalid(f"{path}: line {number}: {ex}") from ex


def _input_of(kind: Kind, raw: msgspec.Raw, number: int) -> Any:
    try:
        return kind.json_input.decode(raw)
    except msgspec.MsgspecError as ex:
        raise RecordingInvalid(
            f"line {number}: an input is not of the type of shard \"{kind.name}\": {ex}"
        ) from ex
