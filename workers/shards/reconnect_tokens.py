"""Reconnect tokens: prove that a reconnecting client owns a place in a shard.

A shard kind with `allow_reconnection_s` reserves the place of a disconnected subscriber for that
time. Every WebSocket that joins such a shard gets a new random token. A later connection that
presents the token takes the place over, and the simulation does not authorize the join again.

Invariants: a token works once, for one shard, and for the session and user that it was issued to.
It expires `allow_reconnection_s` after its connection has closed. If that connection is still open
when the token is claimed, the claimant takes over its place. Tokens travel in the header
Sec-WebSocket-Protocol and in frames, never in a URL. No token outlives the process.

Bound: `limits.SHARD_RECONNECT_TOKENS`; a new token then replaces the oldest one.
Called by `workers.shards.handler`.
"""

from __future__ import annotations

import heapq
from typing import Final

import msgspec

from pylon import limits
from pylon.auth_context import Caller
from pylon.clock import RandomSource
from workers.hub.connection import Connection

_TOKEN_BYTES: Final = 32


class ReconnectClaim(msgspec.Struct, frozen=True):
    """The place in a shard that one token gives a right to."""

    shard_id: str
    sid: str
    caller: Caller
    connection: Connection  # the token was issued to this connection


class ReconnectTokens:
    """The tokens of one process."""

    __slots__ = ("_claim_by_token", "_ends", "_max_tokens", "_random")

    def __init__(
        self, random: RandomSource, max_tokens: int = limits.SHARD_RECONNECT_TOKENS
    ) -> None:
        self._random = random
        self._max_tokens = max_tokens
        self._claim_by_token: dict[str, ReconnectClaim] = {}
        self._ends: list[tuple[float, str]] = []  # heap: (expiry, token) of closed connections

    def __len__(self) -> int:
        return len(self._claim_by_token)

    def issue(self, owned: ReconnectClaim) -> str:
        """Return a new token for a place."""
        if len(self._claim_by_token) >= self._max_tokens:
            del self._claim_by_token[next(iter(self._claim_by_token))]
        token = self._random.token_hex(_TOKEN_BYTES)
        self._claim_by_token[token] = owned
        return token

    def claim(
        self, token: str, shard_id: str, caller: Caller, now_s: float
    ) -> ReconnectClaim | None:
        """Return the place of a token, and invalidate the token.

        Returns:
            None if the token is unknown, used or expired, or belongs to another shard, session or
            user. A token that another client presents stays valid for its owner.
        """
        self._drop_ended(now_s)
        owned = self._claim_by_token.get(token)
        if owned is None or owned.shard_id != shard_id or owned.caller != caller:
            return None
        del self._claim_by_token[token]
        return owned

    def start_expiry(self, token: str, until_s: float) -> None:
        """Let a token expire at `until_s`: its connection has closed."""
        if token in self._claim_by_token:
            heapq.heappush(self._ends, (until_s, token))

    def revoke(self, token: str) -> None:
        """Invalidate a token. Does nothing for an unknown token."""
        self._claim_by_token.pop(token, None)

    def _drop_ended(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            self.revoke(heapq.heappop(self._ends)[1])
