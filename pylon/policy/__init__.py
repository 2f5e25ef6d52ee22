"""Row policies: who may read and write which rows (spec/http.md §5, §9 row 14).

A rule goes through `grammar` (text to syntax), `check` (syntax to a typed expression), then
`compile` (a Python function), `sql` (the same condition as SQL) and `routing` (which callers a
change concerns). `rules` puts the rules of an entity together and is what other parts use.

Logic is two-valued: every condition is true or false, never unknown. A comparison with a null
is false, unless the word ``null`` itself is compared; ``!`` turns false into true exactly.
"""
