"""Starters: the files of new apps, by template. `pylonctl init` copies them."""
