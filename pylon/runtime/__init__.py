"""The process itself: file descriptors, memory, gevent's patches, the parent's death."""
