"""Codegen: types of an app for its clients, written from the manifest.

    typescript   interfaces of rows, inserts, updates and filters, and the `Schema` of `pylon()`
    python       msgspec Structs of rows, and TypedDicts of inserts and updates
    schemas      the JSON Schema of rows and writes

The output depends on the manifest only, and begins with the digest of its canonical form. Called by
`pylonctl codegen` and `pylonctl dev`.
"""
