"""Rooms and presence: who is in which room, with which data (spec/realtime.md §5.1 to §5.3).

    members    what rooms hold: joins, leaves, presence, sockets, expiry, limits
    networks   the share of rooms, members and bytes of each network address
    updates    what subscribers are told: gathered for a tick, coalesced, encoded once
    channels   pub/sub: the last messages of each channel
    desk       commands in, replies and news out; the one interface to all of it

The package knows no processes, sockets or threads; time comes from a `Clock`. In a server there
is one `Desk`, in a thread of the supervisor (`supervisor.rooms`), so that rooms are the same for
all workers and outlive any of them. They do not outlive the supervisor.

`Desk` takes commands and gives replies and ticks of news, and nobody else touches what lies
behind it. A group of nodes that share rooms (through PostgreSQL, say) needs another class with
the same few methods, and no change anywhere else.
"""
