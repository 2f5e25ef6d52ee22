"""Places: leads the diagnostics of a manifest that Python declared back to the Python source.

The child that imports an app (`pylon.dsl.emit`) prints, for parts of the JSON document, the place
in the source. `SourcePlaces` finds the innermost part around an offset that has one. Within a
text, such as a policy, it finds the place of the character.

The places travel to the workers in a file beside their copy of the manifest. Called by `findings`,
with the places of `pylon.app_manifest`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pylon.manifest.document import Node, offset_in_string

Place = tuple[str, int, int]  # file, line, column


class SourcePlaces:
    """The places of the parts of one document."""

    def __init__(self, file: str, places: Mapping[str, Any]) -> None:
        """Take the places as `pylon.dsl.emit` prints them.

        Args:
            file: the app's file, for parts that have no place.
            places: ``[file, line, column]`` by the path of the part, such as ``/entities/0/name``;
                of a text also the runs of its characters.
        """
        self._file = file
        self._places = places

    @property
    def by_path(self) -> Mapping[str, Any]:
        """Return the places as they were given."""
        return self._places

    def locate(self, text: str, root: Node, at: int) -> Place:
        """Return the place of an offset of the JSON text.

        Args:
            root: the document that was read of the text.
        """
        node: Node | None = root
        path = ""
        found: Any = None
        while node is not None:
            found = self._places.get(path, found)
            if isinstance(node.value, str):
                return self._in_text(text, node, at, found, is_own=path in self._places)
            node, path = _child_at(node, path, at)
        return self._plain(found)

    def _in_text(self, text: str, node: Node, at: int, found: Any, *, is_own: bool) -> Place:
        if not is_own or found is None or len(found) < 4 or at <= node.at:
            return self._plain(found)
        index = 0
        while index < len(node.value) and offset_in_string(text, node, index) < at:
            index += 1
        runs = found[3]
        first, line, column = runs[max(bisect_right([run[0] for run in runs], index) - 1, 0)]
        return found[0], line, column + max(index - first, 0)

    def _plain(self, found: Any) -> Place:
        return (self._file, 1, 1) if found is None else (found[0], found[1], found[2])


def _child_at(node: Node, path: str, at: int) -> tuple[Node | None, str]:
    """Return the member or item of a container that has an offset, or None."""
    pairs: Any = ()
    if isinstance(node.value, dict):
        pairs = node.value.items()
    elif isinstance(node.value, list):
        pairs = enumerate(node.value)
    for key, child in pairs:
        if child.at <= at < child.end:
            return child, f"{path}/{key}"
    return None, path


def write_places(manifest: Path, by_path: Mapping[str, Any] | None) -> None:
    """Write the places beside a copy of the manifest; without any, remove those that are there.

    Raises:
        OSError: the file cannot be written.
    """
    file = _file_beside(manifest)
    if by_path is None:
        file.unlink(missing_ok=True)
    else:
        file.write_bytes(msgspec.json.encode(by_path))


def read_places(manifest: Path, app: str) -> SourcePlaces | None:
    """Return the places beside a copy of the manifest, or None.

    Args:
        app: the file that a part without a place names.
    """
    try:
        return SourcePlaces(app, msgspec.json.decode(_file_beside(manifest).read_bytes()))
    except FileNotFoundError:
        return None


def _file_beside(manifest: Path) -> Path:
    return manifest.with_name(manifest.name + ".places")
