"""Both ends of a move of all data, for SQLite: see `pylon.storage.transfer`."""
