"""Area of interest: who is near enough to be seen (spec/realtime.md §4.5).

`Sphere`, `Box` and `Cell` say whether a point is inside. `Grid` is a spatial hash: it finds
what is near a point by looking at the neighbouring cells alone, so `snapshot_for` of every
player on a map costs what is near them and not the square of their number.

Used by apps in `SimState.snapshot_for`. Distances are in the app's own unit.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from math import floor
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sphere:
    """All points within `radius` of a centre."""

    x: float
    y: float
    z: float
    radius: float

    def contains(self, x: float, y: float, z: float = 0.0) -> bool:
        """Whether the point is inside or on the surface."""
        dx, dy, dz = x - self.x, y - self.y, z - self.z
        return dx * dx + dy * dy + dz * dz <= self.radius * self.radius


@dataclass(frozen=True, slots=True)
class Box:
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


@dataclass(frozen=True, slots=True)
class Cell:
    """A square of cells on the x/z plane: the one of a point, and `radius` cells around it."""

    x: float
    z: float
    size: float  # of a cell's side
    radius: int

    def contains(self, x: float, y: float, z: float = 0.0) -> bool:
        """Whether the point's cell is among them; its height does not count."""
        return (
            abs(floor(x / self.size) - floor(self.x / self.size)) <= self.radius
            and abs(floor(z / self.size) - floor(self.z / self.size)) <= self.radius
        )


class Grid(Generic[_Key]):
    """Points on a plane by key, found by nearness.

    Choose cells about as wide as the radius that is asked for.
    """

    __slots__ = ("_cells", "_places", "_size")

    def __init__(self, cell_size: float) -> None:
        """Raises: ValueError for a size that is not above 0."""
        if not cell_size > 0:
            raise ValueError(f"cell_size is {cell_size}; it must be above 0")
        self._size = cell_size
        self._places: dict[_Key, tuple[float, float, tuple[int, int]]] = {}
        self._cells: dict[tuple[int, int], dict[_Key, None]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def put(self, key: _Key, x: float, y: float) -> None:
        """Place `key`, or move it."""
        cell = (floor(x / self._size), floor(y / self._size))
        before = self._places.get(key)
        self._places[key] = (x, y, cell)
        if before is not None:
            if before[2] == cell:
                return
            self._take_out(key, before[2])
        self._cells.setdefault(cell, {})[key] = None

    def remove(self, key: _Key) -> None:
        """Forget `key`; nothing happens if it is not here."""
        place = self._places.pop(key, None)
        if place is not None:
            self._take_out(key, place[2])

    def near(self, x: float, y: float, radius: float) -> Iterator[_Key]:
        """All within `radius` of a point, in an order that depends on the calls alone."""
        size, most = self._size, radius * radius
        for column in range(floor((x - radius) / size), floor((x + radius) / size) + 1):
            for row in range(floor((y - radius) / size), floor((y + radius) / size) + 1):
                for key in self._cells.get((column, row), ()):
                    at_x, at_y, _ = self._places[key]
                    if (at_x - x) ** 2 + (at_y - y) ** 2 <= most:
                        yield key

    def _take_out(self, key: _Key, cell: tuple[int, int]) -> None:
        keys = self._cells[cell]
        del keys[key]
        if not keys:
            del self._cells[cell]
