"""The command `pylonctl`: one module for each verb; `main` finds and runs the verb.

Verbs print results to stdout (with `--json` as one JSON object) and everything else to stderr.
"""
