"""The bus between the processes of one machine: Unix sockets in a private folder. All channels but
writes are ZeroMQ over ``ipc://``; writes are frames on streams (`pylon.bus.frames`).

    writes       WriterClient (each worker)          ->  WriterPort (writer thread)
    changes      ChangesPublisher (PUB, writer)      ->  ChangesSubscriber (SUB, ws and sse)
    signals      SignalSender (PUB, anyone)          ->  SignalProxy (XSUB, XPUB, supervisor)
                                                     ->  SignalReceiver (SUB, anyone)
    rooms        RoomsClient (DEALER, http and ws)   ->  RoomsPort (ROUTER, rooms thread)
    room_updates    RoomsPort (PUB)                     ->  RoomUpdatesSubscriber (SUB, ws)
    shards       Caller (DEALER, http, ws, shards)   ->  CallPort (ROUTER, each shards worker)
    status       StatusSender (PUSH, each worker)    ->  StatusReceiver (PULL, supervisor)

The supervisor binds every endpoint but those of shards. Workers connect, so a worker may end and
start at any time. A caller of a shards worker that has ended reaches the worker that replaces it.
The supervisor's ends are used by plain threads, one thread for each socket; the workers'
ends by gevent, one greenlet for each socket that receives, and no poller.

The bus never drops a write: a worker keeps what the kernel does not take, within the bound on
writes in flight. Every ZeroMQ socket has an explicit high-water mark and linger 0. What happens
at the mark: changes are dropped, and the subscriber sees the gap by `ChangeBatch.prev_seq` and
reads the change log; news of rooms are dropped, and the subscriber sees the gap by
`RoomUpdates.counter` and asks for fresh snapshots; signals and heartbeats are dropped and counted,
and are repeated or only hints by design.

This package is the only place that imports zmq. Importing it never imports gevent: the
green sockets are made by `pylon.bus.contexts.green`, which workers alone call. Connections of
clients go from process to process beside it, by descriptor (`pylon.bus.passing`).
"""
