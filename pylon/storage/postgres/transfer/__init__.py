"""Both ends of a move of all data, for PostgreSQL: see `pylon.storage.transfer`."""
