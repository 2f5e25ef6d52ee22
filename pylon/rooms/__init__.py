"""Rooms and presence: who is in which room, with which data (spec/realtime.md §5.1 to §5.3).

    members    members of rooms: joins, leaves, presence, sockets, expiry, limits
    networks   counts of rooms, members and bytes by network address
    updates    updates for subscribers: gathered for a tick, coalesced, encoded once
    channels   pub/sub: the last messages of each channel
    service    executes commands and produces updates; the only interface of the package

The package knows no processes, sockets or threads; time comes from a `Clock`. A server has one
`RoomService`, in a thread of the supervisor (`supervisor.rooms`). So rooms are the same for all
workers and outlive them. They do not outlive the supervisor.

Other packages use `RoomService` only. Nodes that share rooms, for example through PostgreSQL, need
another class with the same methods.
"""
