"""Resources of the sync protocol: pull, push, changes, documents."""
