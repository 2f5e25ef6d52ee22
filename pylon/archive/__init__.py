"""Archives: where a backup goes that is no folder of this machine's operator: a folder or a bucket.

`open_archive` makes one of a URL. See `pylon.archive.interface` for what an archive promises.
"""
