"""Bundles of a SQLite database: create, verify, restore."""
