"""The life of a VM (floor 3): the only room that owns QEMU processes and their sockets."""
