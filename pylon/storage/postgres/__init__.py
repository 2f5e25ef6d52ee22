"""PostgreSQL backend: one database, on which any number of nodes work. It alone imports psycopg."""
