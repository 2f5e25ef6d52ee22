"""PostgreSQL backups: creates, verifies and restores bundles by `pg_dump` and `pg_restore`."""
