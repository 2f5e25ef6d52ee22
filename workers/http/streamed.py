"""A streamed response: the parts that the app yields, as they go on the wire.

Invariants: a response never has more bytes than its declared length, because the client would read
them as the next response. `next` takes one part from the app; `sending` calls it when the client
has taken the part before. Errors of the app pass through. Called by `wsgi` and `sending`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pylon import log
from workers.http import response

_log = log.get_logger("http")


class Streamed:
    """A response in parts.

    `framed`: the parts are chunks. `left_bytes`: the rest of a declared length.
    """

    __slots__ = ("_parts", "_source", "framed", "left_bytes")

    def __init__(self, source: Any) -> None:
        """`source`: what the app returned (PEP 3333)."""
        self._source = source
        self._parts: Iterator[bytes] = iter(())
        self.framed = False
        self.left_bytes: int | None = None

    @property
    def has_end(self) -> bool:
        """Return whether the body has an end without the end of the connection."""
        return self.framed or self.left_bytes is not None

    def begin(
        self, written: Sequence[bytes], length_bytes: int | None, *, chunks: bool
    ) -> tuple[bytes, bytes]:
        """Ask the app for its first part that is not empty.

        Args:
            written: the bytes that the app wrote before it returned.
            length_bytes: the length that the app declared.
            chunks: whether the client knows chunks.

        Returns:
            The part as it goes on the wire, and the header line that frames the body.
        """
        first = b"".join(written)
        self._parts = iter(self._source)
        while not first:
            part = next(self._parts, None)
            if part is None:
                break
            first = part
        if length_bytes is not None:
            self.left_bytes = length_bytes
            return self._cut(first), response.length(length_bytes)
        if not chunks:
            return first, b""
        self.framed = True
        return response.chunk(first) if first else b"", response.CHUNKED

    def next(self) -> bytes | None:
        """Return the next part as it goes on the wire, which may be empty; None at the end."""
        part = next(self._parts, None)
        if not part:
            return part
        return response.chunk(part) if self.framed else self._cut(part)

    def close(self) -> None:
        """Call `close` of the app's iterable, after the last part or before it (PEP 3333)."""
        close = getattr(self._source, "close", None)
        if close is not None:
            try:
                close()
            except Exception as ex:  # noqa: BLE001  (an app's defect must not keep the socket open)
                _log.exception("answer.close_failed", error=ex)

    def _cut(self, part: bytes) -> bytes:
        if self.left_bytes is not None:
            part = part[:self.left_bytes]
            self.left_bytes -= len(part)
        return part
