"""Documents: the CRDT side of a row (spec/realtime.md §6, docs/realtime.md).

`document` wraps Loro and is the only module that imports it; `frame` makes the bytes that
subscribers get. Storage is `pylon.storage.sqlite.documents` and the writer's
`pylon.storage.core.documents`.
"""
