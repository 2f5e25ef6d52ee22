"""Shared by all processes that accept connections: HTTP/1.1 heads and counts by address.

    head    a request's head: the one parser of the HTTP port and of the socket ports
    counts  counts by client address, shared by all processes of a role
"""
