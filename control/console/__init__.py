"""Guest consoles (floor 2): bytes in, bytes out, and the messages among them. Handed connected sockets."""
