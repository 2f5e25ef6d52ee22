"""ReconnectClaim tokens: a client that lost its connection to a shard proves that a place is its
own.

A shard type with `allow_reconnection_s` keeps the place of a lost subscriber for that time. Every
WebSocket that joins such a shard gets a fresh random token. A later connection that presents it
takes the place over, and the simulation does not judge the join again.

Invariants: a token works once, for one shard, for the session and user that it was issued to, and
until `keep_s` after the connection that it was issued to has closed. A connection that is still
open when its token is claimed loses its place to the claimant. Tokens travel in the header
Sec-WebSocket-Protocol and in frames, never in a URL. Nothing outlives the process.

Bound: `limits.SHARD_RECONNECT_TOKENS`; when it is reached, the oldest token of all is dropped.
Called by `workers.shards.handler`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Final

from pylon import limits
from pylon.auth_context import Caller
from pylon.clock import RandomSource
from workers.hub.connection import Connection

_TOKEN_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class ReconnectClaim:
    """The place of a subscriber that a token stands for."""

    shard_id: str
    sid: str
    caller: Caller
    connection: Connection  # that the token was issued to


class ReconnectTokens:
    """The tokens of one process."""

    __slots__ = ("_ends", "_max_tokens", "_random", "_seat_by_token")

    def __init__(
        self, random: RandomSource, max_tokens: int = limits.SHARD_RECONNECT_TOKENS
    ) -> None:
        self._random = random
        self._max_tokens = max_tokens
        self._seat_by_token: dict[str, ReconnectClaim] = {}
        self._ends: list[tuple[float, str]] = []  # a heap: tokens of lost connections, by end

    def __len__(self) -> int:
        return len(self._seat_by_token)

    def issue(self, seat: ReconnectClaim) -> str:
        """A new token for a place."""
        if len(self._seat_by_token) >= self._max_tokens:
            del self._seat_by_token[next(iter(self._seat_by_token))]
        token = self._random.token_hex(_TOKEN_BYTES)
        self._seat_by_token[token] = seat
        return token

    def claim(
        self, token: str, shard_id: str, caller: Caller, now_s: float
    ) -> ReconnectClaim | None:
        """Use a token up.

        Returns:
            The place, or None where the token is unknown, used, expired, of another shard, or of
            another session or user. A token that somebody else presents stays good for its owner.
        """
        self._drop_ended(now_s)
        seat = self._seat_by_token.get(token)
        if seat is None or seat.shard_id != shard_id or seat.caller != caller:
            return None
        del self._seat_by_token[token]
        return seat

    def lose(self, token: str, until_s: float) -> None:
        """The connection of a token has closed; the token is good until `until_s`."""
        if token in self._seat_by_token:
            heapq.heappush(self._ends, (until_s, token))

    def revoke(self, token: str) -> None:
        """Drop a token. Does nothing for one that is gone."""
        self._seat_by_token.pop(token, None)

    def _drop_ended(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            self.revoke(heapq.heappop(self._ends)[1])
