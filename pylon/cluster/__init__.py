"""Cluster: how a process reaches the shards workers of other nodes.

Each shards worker of a node with PYLON_CLUSTER_URL binds a *cluster port*, a ROUTER socket over TCP
with CURVE (`port`). Any worker of another node connects to it by a *link*, a DEALER (`links`). Over
a link go *calls* (a command and its answer) and *tunnels* (the bytes of one client's connection).

    link DEALER -> port ROUTER   one frame: Parcel      (`envelopes`)
    port ROUTER -> link DEALER   one frame: Parcel

The worker itself binds the port, and neither the supervisor nor a process of its own. A frame then
crosses no third process. The supervisor shares its GIL with the writer, so each frame would wait
for batches, and each batch for frames. A worker that dies takes only the tunnels of its own shards
with it, which end anyway. The price is one TCP port for each shards worker: worker n has the port
of PYLON_CLUSTER_URL plus n - 1. ZeroMQ encrypts in a thread of its own, outside the GIL.

Only nodes may connect: each node makes a key pair at its start (`keys`) and publishes the public
half in the registry of the nodes. The port admits the keys of the nodes that live (`peers`, `zap`).
"""
