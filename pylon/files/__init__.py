"""Files: bytes that clients upload, their records, and who may read them.

A *file* is bytes on a disk and one record of the table `files` (`pylon.storage.auth_tables`). The
bytes never change once the record is ready. `names` makes ids, `types` finds the type from the
bytes, `disk` keeps the bytes, `records` reads and changes the records, `ranges` reads the Range
header, `signatures` makes links that work without a session.

Invariants: a file at its final path is complete; no record is ready before its file is there.
docs/files.md is the page for users. Called by `pylon.api.files` and `pylonctl`.
"""
