"""Faults of one node: what it does to its files and its clients when something breaks.

`write_journal` records each write to the database's files, so that a test can make the files as a
crash at that write would leave them.
"""
