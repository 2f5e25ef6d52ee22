"""The supervisor: one process that owns the sockets, the children and the only writer.

`main.run` assembles the parts (`components`), and `loop.Loop` runs them. Threads: the main loop
(signals, children, drain), the writer, the flusher, the rooms, the signal proxy, the reader of
heartbeats, and one for each control connection; on PostgreSQL also the relay and the node's link to
the others. No gevent in this process.
"""
