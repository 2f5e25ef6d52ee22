"""Routes of files (docs/files.md): uploads in three forms, downloads, links, lists.

`upload` takes a file in one request, `staged` in three (init, PUT, confirm), `tus` in many.
`receiving` is what they share. `download` sends bytes, `access` decides who may read, `listing` has
the records.
"""
