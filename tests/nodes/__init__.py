"""Whole nodes under faults: what writers were told, what clients saw, and what the log says.

`load` has the writers, which repeat what was not acknowledged; `clients` the clients, which sync as
the published client does and change nodes; `faults` what is done to processes, connections and the
database; `history` judges what was recorded. A fleet (`fleet`) is one node on SQLite, or several on
one PostgreSQL. PYLON_TEST_NODE_ROUNDS repeats each fault.
"""
