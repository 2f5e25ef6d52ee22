"""Storage core: the write rules that are the same for all backends.

`engine` executes batches of operations. `rows` evaluates policies and If-Match, `idempotency`
replays repeated operations. `documents` keeps CRDT documents consistent with their rows. `journal`
numbers the changes. `retention` and `sessions` decide which records to drop. All of them use the
primitives of a `RowTransaction` (`transaction`), which a backend implements.

Invariant: nothing here knows SQL, a driver or a file. Layers: above `pylon.storage.interface`,
`pylon.policy` and `pylon.crdt`, below the backends.
"""
