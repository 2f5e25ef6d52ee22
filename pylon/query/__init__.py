"""Queries as trees: conditions on rows, orders, windows, aggregates, related rows, searches.

`predicate` has the conditions on a row, `conditions` their constructors, and `predicate_parts` the
walks through them. `rows` has the query of rows with its order and window; `aggregate`, `graph` and
`search` have the other reads. `parse` makes conditions from the filters of requests, with
`operators` and `operands`; `pylon.policy.bind` makes conditions from read policies. `evaluate`
evaluates a condition for a decoded row; a storage backend compiles it for its database.
docs/query-semantics.md defines the meaning of each node.

Invariant: no tree holds text of a query language, and equal trees select equal rows.
"""
