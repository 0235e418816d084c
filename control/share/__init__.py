"""The host's end of the shared directory (floor 2): the only room that imports `asyncinotify`."""
