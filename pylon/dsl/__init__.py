"""The manifest in Python: annotated classes that declare an app.

    types          the types of fields that Python lacks: Id, File, RichText, Json
    fields         `field`, and the values that the server makes
    entities       `Entity`, the base of an app's entities
    declarations   everything else that an app declares: policies, indexes, search, routes, ...
    annotations    from an annotation to the keys of a field's type
    document       from the declarations to the JSON document, with a place for each part
    places         from a call or a class to lines and columns of the source
    emit           the child process that imports an app and prints its document
    source         the way back: Python source of a JSON document

An app imports the names from `pylon`. Declarations only gather values; `document` reads them in a
child process (`pylon.app_manifest`), and the server checks the JSON that the child prints like any
manifest. Invariant: these modules import the standard library and `pylon.nearest_names` only, so
the child starts fast.
"""
