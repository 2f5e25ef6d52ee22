"""The HTTP role: a gunicorn arbiter and its workers on gevent's hub, serving the falcon app.

    __main__   the arbiter: settings for gunicorn, numbers for its workers
    server     gunicorn's side of a worker: signals, heartbeat, the order of the end
    loop       one epoll set, the greenlets that answer, limits of time and memory, the drain
    accepting  takes connections from the listening sockets, while there is room
    connection_limits  how many connections a worker has, and which it closes for others
    balance    how many connections each worker has, so that they share them evenly
    connection one connection: reads requests, has them answered, writes
    sending    the sending half of a connection: answers that its client has not read yet
    request    a request's head: parsed, checked, as a WSGI environ
    bodies     a request's body, by length or in chunks
    answer     what the app says, as bytes
    process    what one worker builds after the fork: app, store, writer, signals, status

The arbiter itself opens nothing: no greenlet, no bus socket, no database. The supervisor holds
the listening socket, starts the arbiter and stops it with SIGTERM.
"""
