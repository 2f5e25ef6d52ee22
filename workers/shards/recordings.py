"""The folder of recordings: one file for each recorded shard, the newest ones kept.

A file's name begins with what of the shard's id can stand in one, and a hash of the rest, so
that no id leads out of the folder or to the file of another. Called by `workers.shards.registry`.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Final

from pylon import limits, log
from pylon.clock import Clock
from pylon.realtime.kinds import Kind
from pylon.realtime.replay import Recording
from pylon.realtime.simulation import Saved
from pylon.realtime.state import ShardContext

_ODD: Final = re.compile(r"[^A-Za-z0-9_-]")
_ID_CHARS: Final = 64
_ENDING: Final = ".jsonl"
_log = log.get_logger("shards")


class Recordings:
    """Begins recordings, and forgets old ones."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """The folder is made when it is needed."""
        self._folder = folder
        self._clock = clock

    def begin(self, kind: Kind, context: ShardContext, saved: Saved | None) -> Recording | None:
        """A recording, where the kind is recorded; None too where the disk (or the number of
        open files) allows none: that is logged, and the game goes on."""
        if not kind.config.record_bytes:
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            return Recording(self._folder / self._name(context.id), kind, context, saved)
        except OSError as ex:
            _log.warning("shard.unrecorded", shard=context.id, error=str(ex))
            return None

    def _name(self, shard_id: str) -> str:
        plain = _ODD.sub("-", shard_id)[:_ID_CHARS]
        mark = hashlib.blake2b(shard_id.encode(), digest_size=4).hexdigest()
        return f"{plain}-{mark}-{self._clock.wall_ns()}{_ENDING}"

    def _make_room(self) -> None:
        files = [path for path in self._folder.iterdir() if path.suffix == _ENDING]
        # By the time in their names, which is when they were begun.
        files.sort(key=lambda path: path.stem.rpartition("-")[2])
        for path in files[: max(0, len(files) + 1 - limits.SHARD_RECORDINGS)]:
            path.unlink(missing_ok=True)
