"""Documents: the CRDT side of a row (spec/realtime.md §6, docs/realtime.md).

`document` wraps Loro, and only this package imports it. `frame` encodes the binary message for
subscribers. The rows are stored by `pylon.storage.sqlite.documents` and the writer's
`pylon.storage.core.documents`.
"""
