"""Metrics of files: uploads and downloads of an HTTP worker."""

from __future__ import annotations

from typing import Final

from pylon.metrics.registries import WORKER
from pylon.metrics.values import PlainCounter as Counter

FILE_UPLOADS: Final = Counter(
    "pylon_file_uploads_total",
    "Files that were stored, by how they came: request (one request), staged (init, PUT, confirm), "
    "tus.", ("form",), registry=WORKER,
)
FILE_BYTES: Final = Counter(
    "pylon_file_bytes_total", "Bytes of files that were received or sent.", ("direction",),
    registry=WORKER,
)
FILES_COLLECTED: Final = Counter(
    "pylon_file_uploads_collected_total", "Unfinished uploads whose bytes were deleted.",
    registry=WORKER,
)
