"""Clients that edit documents with Loro, and bytes with Loro's checksum."""

from __future__ import annotations

import struct
from typing import Any

from loro import ExportMode, LoroDoc, LoroText, VersionVector

_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
_M = 0xFFFFFFFF
_SEED = int.from_bytes(b"LORO", "little")


class LoroClient:
    """A client's copy of a row's document."""

    def __init__(self, *parts: bytes) -> None:
        self.doc = LoroDoc()
        self._pushed = VersionVector()
        for part in parts:
            self.hear(part)

    def hear(self, data: bytes) -> None:
        """Import what the server sent."""
        status = self.doc.import_(data)
        assert status.pending is None, "what the server sends can be used at once"
        self._pushed = self.doc.oplog_vv

    def text(self, field: str) -> LoroText:
        found = self.doc.get_map("row").get(field)
        assert found is not None
        container = found.container  # type: ignore[union-attr]
        assert isinstance(container, LoroText)
        return container

    def row(self) -> dict[str, Any]:
        """The document as a row."""
        value = self.doc.get_map("row").get_deep_value()
        assert isinstance(value, dict)
        return value

    def update(self) -> bytes:
        """What was done since the last call or the last `hear`, as an update."""
        self.doc.commit()
        data = self.doc.export(ExportMode.Updates(self._pushed))
        self._pushed = self.doc.oplog_vv
        return data

    def everything(self) -> bytes:
        """The whole document, as a snapshot."""
        self.doc.commit()
        return self.doc.export(ExportMode.Snapshot())


def sealed(body: bytes) -> bytes:
    """`body` (mode and payload) with Loro's magic and a checksum that is right."""
    return b"loro" + bytes(12) + struct.pack("<I", _xxh32(body, _SEED)) + body


def _xxh32(data: bytes, seed: int) -> int:
    size, at = len(data), 0
    if size >= 16:
        lanes = [(seed + _P1 + _P2) & _M, (seed + _P2) & _M, seed, (seed - _P1) & _M]
        while at + 16 <= size:
            words = struct.unpack_from("<4I", data, at)
            lanes = [
                _rol((lane + word * _P2) & _M, 13) * _P1 & _M
                for lane, word in zip(lanes, words, strict=True)
            ]
            at += 16
        total = sum(_rol(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & _M
    else:
        total = (seed + _P5) & _M
    total = (total + size) & _M
    while at + 4 <= size:
        word = struct.unpack_from("<I", data, at)[0]
        total = _rol((total + word * _P3) & _M, 17) * _P4 & _M
        at += 4
    for byte in data[at:]:
        total = _rol((total + byte * _P5) & _M, 11) * _P1 & _M
    total = (total ^ total >> 15) * _P2 & _M
    total = (total ^ total >> 13) * _P3 & _M
    return total ^ total >> 16


def _rol(value: int, by: int) -> int:
    return ((value << by) | (value >> (32 - by))) & _M
