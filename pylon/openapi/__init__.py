"""The OpenAPI 3.1 document of a served app, generated from its manifest.

    parts      the shapes that all operations share: parameters, answers, errors
    values     schemas of values and rows: what is read, inserted, patched
    filters    schemas of the filter object, graph query and aggregate
    rows, writes, sync, identity, server
               the operations, a module for each family of routes of `pylon.api`
    document   puts them together

Every route of `pylon.api.application` is described here; a test walks falcon's routes and the
fuzzers check the answers of a served app against the document.
"""
