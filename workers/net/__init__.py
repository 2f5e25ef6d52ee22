"""Connections of HTTP/1.1, shared by the HTTP role and the socket roles.

    listener  listening sockets: accepting, and the pause while descriptors are exhausted
    poller    one epoll set for many sockets
    head      a request's head: the one parser, with every rule against smuggling
    response  heads and error responses as bytes
    linger    the end of a refused connection
    counts    counts by client address, shared by all processes of a role

Used by `workers.http` and `workers.hub`.
"""
