"""Resources of the sync protocol (spec/realtime.md §1, §6).

    pull        changes after a cursor, or a snapshot;  hints  where each pull ended
    push        a client's queued changes
    documents   updates of the documents of rows
    bodies      the types of request bodies
"""
