"""Migration: moves all data of one store into another, and verifies them row by row.

`survey` lists what does not fit, `move` copies, `follow` takes over what a running server writes
meanwhile, `compare` verifies. They know no store: see `pylon.storage.transfer`.
"""
