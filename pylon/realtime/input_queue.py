"""Input queue: the inputs of one shard that wait for its next tick, in order of arrival.

Each input gets a server seq: 1, 2, 3 … for the life of the shard. An input that finds the queue
full uses one up too, so that a client can see from the seqs that inputs were refused.

Bound: `max_inputs`; above it an input is refused. Called by `pylon.realtime.shard`, which counts
the inputs of each tick in `Step`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pylon.errors import InputQueueFull
from pylon.realtime.audience import Sink


class PendingInput(msgspec.Struct, frozen=True):
    """An input that waits for its tick."""

    sid: str
    sink: Sink | None  # None: the client sent it over HTTP
    value: Any
    client_seq: int | None
    server_seq: int


class InputQueue:
    """The waiting inputs of one shard."""

    __slots__ = ("_inputs", "_max_inputs", "_server_seq")

    def __init__(self, max_inputs: int) -> None:
        """Make an empty queue.

        Args:
            max_inputs: how many inputs may wait; 0: any number.
        """
        self._max_inputs = max_inputs
        self._inputs: list[PendingInput] = []
        self._server_seq = 0

    def __len__(self) -> int:
        """Return the number of waiting inputs."""
        return len(self._inputs)

    def add(self, sid: str, sink: Sink | None, value: Any, client_seq: int | None) -> int:
        """Queue an input, and return its server seq.

        Args:
            sink: the connection that sent it; None if it came over HTTP.
            client_seq: the number that the client gave it.

        Raises:
            InputQueueFull: `max_inputs` inputs wait.
        """
        self._server_seq += 1
        if self._max_inputs and len(self._inputs) >= self._max_inputs:
            raise InputQueueFull(
                "shard input queue is full", hint=f"{self._max_inputs} inputs wait"
            )
        self._inputs.append(PendingInput(sid, sink, value, client_seq, self._server_seq))
        return self._server_seq

    def take_all(self) -> list[PendingInput]:
        """Empty the queue, and return its inputs in order of arrival."""
        inputs, self._inputs = self._inputs, []
        return inputs

    def remove_sender(self, sid: str) -> None:
        """Remove the inputs of a subscriber who has left."""
        self._inputs = [item for item in self._inputs if item.sid != sid]

    def clear(self) -> None:
        """Remove all inputs."""
        self._inputs.clear()
