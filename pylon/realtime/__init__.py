"""Tick-driven simulations: what an app writes, and what runs it. No sockets, no bus.

    state         SimState, the class that an app subclasses
    kinds         the registered classes, by name, with their settings
    shard         one running simulation: subscribers, inputs, ticks
    snapshots     what goes out, whole or as a delta
    area          who is near whom
    app_module    loads the app's Python file (PYLON_APP)

`workers.shards` runs shards; everything here takes its time from its caller and is tested
without waiting.
"""
