"""The contract of a store, as one suite that every backend passes.

Each test runs once on each store (tests/support/stores.py), through the protocols of
`pylon.storage.backend` and `pylon.storage.interface` only. A backend that passes keeps every
promise that Pylon makes about data: it is the definition of done for a new one. Tests of how one
backend does it (its files, its plans, its locks) stand in tests/test_storage_*.
"""
