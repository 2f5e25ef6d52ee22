"""Schema changes, as far as they do not depend on a backend.

    diff       differences of two manifests
    options    renames, removals and defaults that an operator asks for
    steps      the plan of a schema change
    database   what a plan asks of a database, and the statements that it wants from it
    live       the tables, columns and indexes that a database has
    plan       the steps from the live schema to the manifest; draft, fold_plan and names are parts
    columns    columns and indexes that Pylon makes for an entity, by name
    convert    values of one type as values of another
    history    entries of `_pylon_schema_history`

`pylonctl schema` and the schema code of each backend call it.
"""
