"""The supervisor: one process that owns the sockets, the children and the only writer.

`main.run` assembles the parts and `loop.Supervisor` runs them. Threads: the main loop
(signals, children, drain), the writer, the flusher, the signal proxy, the reader of
heartbeats, and one for each control connection. No gevent in this process.
"""
