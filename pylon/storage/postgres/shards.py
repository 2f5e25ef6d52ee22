"""Shards of the writer: the statements on `_pylon_shards`, the saved states and the placements of
shards. Called by `transaction`.
"""

from __future__ import annotations

from typing import Final

PUT: Final = (
    "INSERT INTO _pylon_shards (id, tick, data, saved_at) VALUES ($1, $2, $3, $4) "
    "ON CONFLICT (id) DO UPDATE SET tick = excluded.tick, data = excluded.data, "
    "saved_at = excluded.saved_at"
)
MOVE: Final = (
    "INSERT INTO _pylon_shards (id, tick, home, saved_at) VALUES ($1, 0, $2, $3) "
    "ON CONFLICT (id) DO UPDATE SET home = excluded.home"
)
COUNT: Final = "SELECT count(*) FROM _pylon_shards WHERE id = $1"
DROP: Final = "DELETE FROM _pylon_shards WHERE id = $1"
