"""The command `pylonctl`: one module for each verb, `main` puts them together.

Results go to stdout (as one JSON object with `--json`), everything else to stderr.
"""
