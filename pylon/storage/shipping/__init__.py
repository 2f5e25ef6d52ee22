"""Continuous backup: the log of a database, shipped to an archive in segments.

A *generation* is a chain of segments without a gap. A *segment* is a file with frames of the
write-ahead log, the place of each commit among them, its seq and its time. A *snapshot* is a bundle
at a place of the chain. Restoring takes a snapshot, and the segments from there to a commit.

The store captures segments into a *spool*, a folder beside the data (`spool`). The supervisor
uploads them (`supervisor.shipper`). `names` has the names of objects, `segment` the format of the
file, `catalogue` what an archive has, `target` which commit a restore brings back, `materialize`
makes a bundle of it, `retention` what may go.
"""
