"""Tick-driven simulations: the classes that an app subclasses, and the code that runs them.

    state         SimState, the class that an app subclasses
    kinds         registry of the shard classes and matchmaker modes, by name
    app_module    loads the app's Python file (PYLON_APP)
    simulation    one state with its tick count and simulated time
    shard         a simulation with its subscribers, inputs and ticks
    tick_schedule when a shard's ticks are due, and when an idle shard ends
    input_queue   inputs of a shard that wait for its next tick
    roster        connected subscribers and reserved places of a shard
    audience      connections of a shard, and the frames that each receives
    snapshots     encoding of snapshots, whole or as a delta
    recorder      what a shard reports to its recording
    replay        recordings of a shard's inputs, and their replay
    matchmaker    queues of waiting players, and the groups made of them
    placement     the worker that runs a shard
    area          spatial helpers for apps: shapes and a grid

No module here opens a socket or uses the bus. The caller passes the time in, so tests do not wait.
Called by `workers.shards`, `pylonctl replay`, the start of a server, and apps.
"""
