"""The OpenAPI 3.1 document of a served app, generated from its manifest.

    document   assembles the document
    parts      what all operations share: parameters, responses, errors
    bodies     schemas of request bodies, derived from the types that decode them
    values     schemas of values and rows, as read, inserted and patched
    filters    schemas of filters, graph queries and aggregates; search has its own
    rows, search, writes, documents, sync, identity, rooms, shards, server
               the operations, a module for each family of routes of `pylon.api`

Invariants: a test walks the routes of `pylon.api.application` and fails if the document lacks
one; another fails if the document lacks a body type; the fuzzers of tests/test_fuzz_schemathesis
compare a served app with the document.
"""
