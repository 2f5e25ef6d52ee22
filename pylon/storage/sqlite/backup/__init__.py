"""SQLite backups: creates, verifies and restores bundles."""
