"""The database's tables: their SQL, what is there, what to add, and adding it."""
