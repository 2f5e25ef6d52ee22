"""Resources of sessions and sign-in (spec/http.md §3.11).

    sessions      guests, the caller, sessions
    refresh       the exchange of a token for a new one
    session_list  the sessions of a caller, which it may end
    revocations   the end of sessions
    routes        the table of all routes that the identity process answers
    forwarding    their resources
    bodies        the types of request bodies
"""
