"""Backup bundles: made while the server runs, checked, and put back (spec/http.md §8.1)."""
