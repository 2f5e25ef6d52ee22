"""The app's manifest: its model, and the checks of pylon.manifest.json.

    document      JSON reader that keeps the offset of each value
    keys          the keys of each level, and the shapes of their values
    shape         checks a document against them
    type_words    the right word for a type that other systems know
    checks        checks entities, operations and routes, and calls the four below
    name_checks   checks names
    field_checks  checks the keys of a field that depend on its type
    policy_checks checks policies, but not their expressions
    auth_checks   checks `auth`
    org_entities  adds the entities of organisations
    findings      collects the diagnostics of a file
    diagnostics   one diagnostic, and the error that carries them
    codes         explanation and remedy of each diagnostic code
    build         checked nodes to the model
    model         the manifest in memory
    references    which id(Entity) fields a store checks
    public        the manifest without its rules, for `GET /api/manifest`

`pylon.manifest_loader` runs the checks in order; other packages read the model.
"""
