"""Resources of rooms, topics, shards and matches."""
