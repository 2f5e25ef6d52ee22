"""The HTTP API (spec/http.md §3): a falcon app over the store, the writer and the bus.

    application   builds the app: routes, middleware, error responses
    services      what the resources work with, a group for each family
    http/         HTTP for all resources: middleware, routing, callers, bodies, responses
    data/         rows: entities, queries, search, batches, links, actions, import and export
    sync/         pull, push, documents
    realtime/     rooms, channels, shards, the matchmaker
    identity/     sessions
    dev/          pages and routes of dev mode: the start page, the overlay of errors
    admin/        the server itself: health, metrics, manifest, the OpenAPI document, reset

A route is one resource class in a module of its family, one line in `application`, the types of
its bodies in the family's `bodies` module, and its description in `pylon.openapi`. Tests fail if
the document lacks a route or a body type.

Invariants: a read is limited by the caller's read policy inside its query; a worker validates and
encodes a write, and the supervisor's writer executes it. The resources keep no state of their own.
"""
