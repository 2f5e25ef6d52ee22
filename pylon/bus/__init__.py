"""The bus between the processes of one machine: Unix sockets in a private folder.

All channels but writes are ZeroMQ over ``ipc://``; writes are frames on streams
(`pylon.bus.frames`).

    writes        WriterClient (each worker)         ->  WriterPort (writer thread)
    changes       ChangesPublisher (PUB, writer)     ->  ChangesSubscriber (SUB, ws and sse)
    signals       SignalSender (PUB, any process)    ->  SignalProxy (XSUB, XPUB, supervisor)
                                                     ->  SignalReceiver (SUB, workers)
    rooms         RoomsClient (DEALER, http and ws)  ->  RoomsPort (ROUTER, rooms thread)
    room_updates  RoomsPort (PUB)                    ->  RoomUpdatesSubscriber (SUB, ws)
    shards        Caller (DEALER, http, ws, shards)  ->  CallPort (ROUTER, each shards worker)
    status        StatusSender (PUSH, each worker)   ->  StatusReceiver (PULL, supervisor)

The supervisor binds every endpoint but those of shards. Workers connect, so a worker may end and
start at any time. A caller of a shards worker that has ended reaches the worker that replaces it.
Plain threads use the supervisor's ends, one thread for each socket. In workers, gevent uses them:
one greenlet for each socket that receives, and no poller.

The bus never drops a write: a worker keeps what the kernel does not take, within the bound on
writes in flight. Every ZeroMQ socket has an explicit high-water mark and linger 0. At the mark
ZeroMQ drops messages. A subscriber of changes sees the gap by `ChangeBatch.prev_seq` and reads the
change log. A subscriber of room updates sees the gap by `RoomUpdates.counter` and requests new
snapshots. Both count the gap; senders count dropped heartbeats. Nobody counts dropped signals: they
are repeated, or the store has the same facts.

Only this package imports zmq. Importing it never imports gevent, because only workers call
`pylon.bus.contexts.green`, which makes the green sockets. Connections of clients pass between
processes as descriptors, not over the bus (`pylon.bus.passing`).
"""
