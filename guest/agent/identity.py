"""As whom the agent touches files (guest floor): the key `run_as`.

Used by `guard`. The agent has one thread that touches files, so it takes on the user for one step of the work and is
itself again before anything else runs. (Only what waits for a disk runs in a thread of its own, on descriptors that
are open already.)
"""

import os

from .account import Account


class Identity:
    """A user with all of its groups.

    Raises:
        LookupError: There is no such user.
    """

    def __init__(self, name: str) -> None:
        self._account = Account(name)
        self._own = (os.geteuid(), os.getegid(), os.getgroups())
        self.is_own = self._own[0] == self._account.uid

    def __enter__(self) -> None:
        if not self.is_own:
            os.setgroups(self._account.groups)
            os.setegid(self._account.gid)
            os.seteuid(self._account.uid)

    def __exit__(self, *_error: object) -> None:
        if not self.is_own:
            uid, gid, groups = self._own
            os.seteuid(uid)
            os.setegid(gid)
            os.setgroups(groups)
