"""Starts the agent from a directory, from a file or as `python3 -m` (guest floor); called by init or by a unit.

`python3 -I -S -B …/agent/__main__.py` is the quickest way in: for a directory Python first imports `runpy`.
"""

import sys

if not __package__:
    # Run by path: the package is the directory this file lies in, found from the directory above it.
    _directory = __file__.rpartition("/")[0] or "."
    if not _directory.startswith("/"):
        import os

        _directory = os.path.abspath(_directory)
    _parent, _, _name = _directory.rpartition("/")
    sys.path.insert(0, _parent or "/")
    main = __import__(_name + ".main", fromlist=("main",))
else:
    from . import main

if __name__ == "__main__":
    sys.exit(main.main(sys.argv[1:]))
