"""Row policies: who may read and write which rows (spec/http.md §5, §9 row 14).

A rule goes through `grammar` (text to syntax), `check` (syntax to a typed expression), then
`compile` (a Python function), `bind` (the same condition as a query tree) and `routing` (which
callers a change concerns). `rules` joins the rules of an entity; other parts call `rules` only.

Logic is two-valued: every condition is true or false, never unknown. A comparison with a null
is false, unless the word ``null`` itself is compared; ``!`` turns false into true exactly.
"""
