"""Schema changes, as far as they do not depend on a backend.

    diff       differences of two manifests
    options    renames, removals and defaults that an operator asks for
    steps      the plan of a schema change

`pylonctl schema` and the schema code of each backend call it.
"""
