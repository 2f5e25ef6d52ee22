"""Resources of rows (spec/http.md §3.2 to §3.8, §3.16).

    entities      lists, pages and single rows: read, insert, update, delete
    query, aggregate, graph, search   reads with a filter
    batch         many operations in one request;  operations  what it shares with pushes
    link          sets and clears relations
    actions       checks a caller and the inputs of an action
    export, import_   all rows, out and in
    access        what a caller may read;  conflicts  limits what refusals reveal
    changes       makes the writer's op of an insert, update or delete
    query_cache   results that stay valid until the next commit
    query_watch   what reads cost, and which are slow
    bodies        the types of request bodies
"""
