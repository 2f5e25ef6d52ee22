"""The HTTP role: a gunicorn arbiter and its workers on gevent's hub, serving the falcon app.

    arbiter    the arbiter: settings for gunicorn, numbers for its workers
    server     gunicorn's side of a worker: signals, heartbeat, the order of the end
    process    the parts of a worker: app, store, writer, signals, status
    loop       the connections of a worker, and what they share
    accepting  takes connections from the listening sockets, while there is room
    accept_balancer    spreads connections evenly over the workers
    connection_limits  how many connections a worker has, and which it closes for others
    byte_budget        memory that all connections share for bodies or for responses
    dispatchers        the greenlets that serve connections with an event
    drain      ends the connections of a worker that stops
    connection the states of one connection
    receiving  its receiving half: heads and bodies
    sending    its sending half: responses that the client has not read
    wsgi       one call of the app
    request    a request's head as a WSGI environ
    bodies     a request's body, by length or in chunks
    response   a response's head as bytes
    streamed   a response that the app yields in parts
    roles      requests for workers of other roles

The arbiter itself opens no greenlet, bus socket or database. The supervisor holds the listening
socket, starts the arbiter and stops it with SIGTERM. `workers.net` has what the socket roles share.
"""
