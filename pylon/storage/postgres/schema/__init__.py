"""PostgreSQL schema: inspects a database, plans its migration to the manifest, and applies it."""
