"""The rules of writing that no backend may decide for itself.

`engine` carries out batches of operations. `rows` judges policies, If-Match and idempotency;
`documents` keeps rows' CRDT documents in line with them; `journal` numbers the changes;
`retention` and `sessions` say what may be dropped. All of them work on a `RowTransaction`
(`transaction`), which is what a backend implements.

Invariant: nothing here knows SQL, a driver or a file. Layers: above `pylon.storage.interface`,
`pylon.policy` and `pylon.crdt`, below the backends.
"""
