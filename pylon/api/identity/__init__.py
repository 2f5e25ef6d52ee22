"""Resources of sessions and sign-in (spec/http.md §3.11).

    sessions   guests, the caller, sessions, refresh
    bodies     the types of request bodies
"""
