"""Resources of rows: CRUD, batches, queries, search, import and export."""
