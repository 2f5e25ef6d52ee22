"""Area of interest: selects the objects near a player (spec/realtime.md §4.5).

`Sphere`, `Box` and `Cell` test whether a point is inside. `Grid` is a spatial hash: a search reads
only the cells that its radius touches. So `snapshot_for` of all players costs the number of pairs
that are near each other, not the square of the number of players.

Apps call it in `SimState.snapshot_for`. Distances are in the app's own unit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from math import floor
from typing import Generic, TypeVar

import msgspec

_Key = TypeVar("_Key", bound=Hashable)


class Sphere(msgspec.Struct, frozen=True):
    """All points within `radius` of a centre."""

    x: float
    y: float
    z: float
    radius: float

    def contains(self, x: float, y: float, z: float = 0.0) -> bool:
        """Whether the point is inside or on the surface."""
        dx, dy, dz = x - self.x, y - self.y, z - self.z
        return dx * dx + dy * dy + dz * dz <= self.radius * self.radius


class Box(msgspec.Struct, frozen=True):
    """An axis-aligned box, its surface included."""

    min_x: float
    min_y: float
    min_z: float
    max_x: float
    max_y: float
    max_z: float

    def contains(self, x: float, y: float, z: float = 0.0) -> bool:
        """Whether the point is inside or on the surface."""
        return (
            self.min_x <= x <= self.max_x
            and self.min_y <= y <= self.max_y
            and self.min_z <= z <= self.max_z
        )


class Cell(msgspec.Struct, frozen=True):
    """A square of cells on the x/z plane: the cell of a point, and `radius` cells around it."""

    x: float
    z: float
    size: float  # of a cell's side
    radius: int

    def contains(self, x: float, y: float, z: float = 0.0) -> bool:
        """Whether the point's cell is in the square. The height `y` does not count."""
        return (
            abs(floor(x / self.size) - floor(self.x / self.size)) <= self.radius
            and abs(floor(z / self.size) - floor(self.z / self.size)) <= self.radius
        )


class Grid(Generic[_Key]):
    """Points on a plane by key, with a search by distance.

    Choose cells about as wide as the radius of the searches.
    """

    __slots__ = ("_keys_by_cell", "_position_by_key", "_size")

    def __init__(self, cell_size: float) -> None:
        """Make an empty grid.

        Raises:
            ValueError: the size is not above 0.
        """
        if not cell_size > 0:
            raise ValueError(f"cell_size is {cell_size}; it must be above 0")
        self._size = cell_size
        self._position_by_key: dict[_Key, tuple[float, float, tuple[int, int]]] = {}
        self._keys_by_cell: dict[tuple[int, int], dict[_Key, None]] = {}

    def __len__(self) -> int:
        return len(self._position_by_key)

    def __contains__(self, key: object) -> bool:
        return key in self._position_by_key

    def put(self, key: _Key, x: float, y: float) -> None:
        """Add `key` at a point, or move it there."""
        cell = (floor(x / self._size), floor(y / self._size))
        before = self._position_by_key.get(key)
        self._position_by_key[key] = (x, y, cell)
        if before is not None:
            if before[2] == cell:
                return
            self._remove_from_cell(key, before[2])
        self._keys_by_cell.setdefault(cell, {})[key] = None

    def remove(self, key: _Key) -> None:
        """Remove `key`. Do nothing if the grid does not have it."""
        position = self._position_by_key.pop(key, None)
        if position is not None:
            self._remove_from_cell(key, position[2])

    def near(self, x: float, y: float, radius: float) -> Iterator[_Key]:
        """Yield the keys within `radius` of a point.

        The order depends only on earlier calls, so a replay repeats it.
        """
        size, limit_squared = self._size, radius * radius
        for column in range(floor((x - radius) / size), floor((x + radius) / size) + 1):
            for row in range(floor((y - radius) / size), floor((y + radius) / size) + 1):
                for key in self._keys_by_cell.get((column, row), ()):
                    at_x, at_y, _ = self._position_by_key[key]
                    if (at_x - x) ** 2 + (at_y - y) ** 2 <= limit_squared:
                        yield key

    def _remove_from_cell(self, key: _Key, cell: tuple[int, int]) -> None:
        keys = self._keys_by_cell[cell]
        del keys[key]
        if not keys:
            del self._keys_by_cell[cell]
