"""SQLite's part of a continuous backup: captures the frames of the WAL, and replays them."""
