"""Makes the images that a configuration declares (floor 2); it is handed what runs programs, and where things are.

Called by the command line's face. `build.py` is the way in; `cloud.py`, `disk.py` and `ours.py` know one builder each.
"""
