"""Backup bundles: the part of a backup that is the same for every store."""
