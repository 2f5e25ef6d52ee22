"""The HTTP role: a gunicorn arbiter and its gevent workers, serving the falcon app.

    __main__   the arbiter: settings for gunicorn, numbers for its workers
    server     gunicorn's gevent worker, with a drain that keeps our promises
    process    what one worker builds after the fork: app, store, writer, signals, status

The arbiter itself opens nothing: no greenlet, no bus socket, no database. The supervisor holds
the listening socket, starts the arbiter and stops it with SIGTERM.
"""
