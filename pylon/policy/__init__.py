"""Row policies: who may read and write which rows (spec/http.md §5, §9 row 14).

    grammar       parses the text of a rule into syntax nodes
    check         resolves names and kinds: syntax to a typed expression (over `scope`, `kinds` and
                  `exists_check`)
    expression    the nodes of a typed expression
    compile       expression to a Python function
    bind          expression and caller to a tree of `pylon.query`
    routing       expression to the plan that finds the receivers of a change
    entity_rules  the compiled rules of one entity, which judge rows
    rules         the compiled rules of all entities, actions and rooms

Logic is two-valued: every condition is true or false, never unknown. A comparison with a null value
is false, except with the word ``null`` itself; ``!`` turns false into true exactly.

Other packages call `rules`, and read the plans of `routing`. The manifest's validation calls
`check`.
"""
