"""The schema of a SQLite database: inspect, plan, apply."""
