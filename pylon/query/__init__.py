"""Queries as trees: which rows, in which order, with which figures and related rows.

`predicate` has the conditions on a row, `rows` a query with its order and window, `aggregate`,
`graph` and `search` the other reads. `parse` reads the filters of the wire, `pylon.policy.bind`
makes the same trees of read rules. `evaluate` judges a decoded row; a storage backend compiles
the trees for its database. docs/query-semantics.md says what each node means.

Invariant: no tree holds text of a query language, and equal trees select equal rows.
"""
