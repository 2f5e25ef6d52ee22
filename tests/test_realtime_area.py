"""pylon.realtime.area: what is near, against a plain scan."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylon.realtime.area import Box, Cell, Grid, Sphere

# Multiples of 1/1024, so that sums and squares are exact: next to 1e-197, (x - y) ** 2 is 0.
_STEP = 1_024
_coordinate = st.integers(-50 * _STEP, 50 * _STEP).map(lambda number: number / _STEP)
_radius = st.integers(0, 40 * _STEP).map(lambda number: number / _STEP)


@pytest.mark.parametrize(
    ("area", "inside", "outside"),
    [
        (Sphere(0, 0, 0, 2), (0, 2, 0), (0, 2, 0.1)),
        (Box(0, 0, 0, 1, 1, 1), (1, 1, 1), (1, 1, 1.01)),
        (Cell(5, 5, 10, 0), (9.9, 1_000, 0), (10, 5, 5)),
        (Cell(5, 5, 10, 1), (-10, 0, 19.9), (-10.1, 0, 5)),
        (Cell(-1, -1, 10, 0), (-10, 0, -0.1), (0, 0, -1)),
    ],
)
def test_inside_and_outside(
    area: Sphere | Box | Cell, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    assert area.contains(*inside)
    assert not area.contains(*outside)


@given(
    moves=st.lists(
        st.tuples(st.integers(0, 8), st.one_of(st.none(), st.tuples(_coordinate, _coordinate))),
        max_size=40,
    ),
    cell_size=st.floats(0.5, 30), at=st.tuples(_coordinate, _coordinate), radius=_radius,
)
def test_the_grid_finds_what_a_scan_finds(
    moves: list[tuple[int, tuple[float, float] | None]], cell_size: float,
    at: tuple[float, float], radius: float,
) -> None:
    grid: Grid[int] = Grid(cell_size)
    places: dict[int, tuple[float, float]] = {}
    for key, place in moves:
        if place is None:
            grid.remove(key)
            places.pop(key, None)
        else:
            grid.put(key, *place)
            places[key] = place
    x, y = at
    found = list(grid.near(x, y, radius))
    assert len(found) == len(set(found))
    assert set(found) == {
        key for key, (px, py) in places.items()
        if (px - x) ** 2 + (py - y) ** 2 <= radius * radius
    }
    assert len(grid) == len(places)
    assert not any(cells == {} for cells in grid._keys_by_cell.values())


def test_a_grid_needs_a_size() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Grid(0)
