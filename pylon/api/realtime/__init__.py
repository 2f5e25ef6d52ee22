"""Resources of rooms, channels, shards and the matchmaker (spec/realtime.md §4, §5).

    rooms, pubsub, shards, matchmaking   the resources
    bodies                               the types of request bodies
"""
