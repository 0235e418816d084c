"""Starts the packaged agent (guest floor): from the directory of a package, or as `__main__` of the zipapp.

Kept to words that any Python 3 understands, so that one that is too old says so instead of failing to parse.
"""

import sys

if sys.version_info < (3, 9):
    sys.exit("unhinged-agent: needs Python 3.9 or newer, and this is %d.%d" % sys.version_info[:2])

# In isolated mode (-I) Python does not look beside a script; into a zipapp it looks anyway.
_here = __file__.rpartition("/")[0] or "."
if _here not in sys.path:
    sys.path.insert(0, _here)

if __name__ == "__main__":
    if sys.argv[1:] == ["--version"]:
        from agent import VERSION  # type: ignore[import-not-found] # the package lies beside this file when installed

        sys.stdout.write("unhinged-agent %s\n" % VERSION)
    else:
        from agent.main import main  # type: ignore[import-not-found]

        sys.exit(main(sys.argv[1:]))
