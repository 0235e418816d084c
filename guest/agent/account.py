"""A user of this guest whom a program runs as (guest floor); imported when a call names one.

posix_spawn cannot change the user, so such a program starts through a fork: the child does what is to be done before
the program, and tells a failure over a pipe that the program never sees.
"""

import _signal  # type: ignore[import-not-found]
import os
import pwd

from .process import SIGNALS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


_EINVAL = 22


class Account:
    """One user, by the name that `/etc/passwd`, or whatever the C library asks, has for them.

    Attributes:
        environment: The variables that tell a program who it runs as.

    Raises:
        KeyError: There is no such user.
    """

    def __init__(self, name: str) -> None:
        entry = pwd.getpwnam(name)
        self.uid = entry.pw_uid
        self.gid = entry.pw_gid
        self.groups = os.getgrouplist(name, entry.pw_gid)
        self.environment = {
            "HOME": entry.pw_dir or "/",
            "USER": name,
            "LOGNAME": name,
            "SHELL": entry.pw_shell or "/bin/sh",
        }

    def spawn(
        self,
        program: str,
        argv: "list[str]",
        environment: "dict[str, str]",
        cwd: str,
        descriptors: "list[int]",
        terminal: "str | None",
    ) -> int:
        """Starts a program as this user, in a session of its own; gives its process id.

        Raises:
            OSError: It could not be started; nothing is left behind.
        """
        if terminal is not None:
            os.chown(terminal, self.uid, -1)  # as login(1) does, so that the program can open it by its path
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if not pid:
            self._become(program, argv, environment, cwd, descriptors, terminal, write_end)
        os.close(write_end)
        try:
            failure = os.read(read_end, 4096)
        finally:
            os.close(read_end)
        if failure:
            os.waitpid(pid, 0)
            number, _, where = failure.decode("utf-8", "replace").partition(" ")
            raise OSError(int(number), os.strerror(int(number)), where)
        return pid

    def _become(
        self,
        program: str,
        argv: "list[str]",
        environment: "dict[str, str]",
        cwd: str,
        descriptors: "list[int]",
        terminal: "str | None",
        failure_fd: int,
    ) -> "NoReturn":
        where = program
        try:
            os.setsid()
            if terminal is not None:
                descriptors = [os.open(terminal, os.O_RDWR)] * 3
            for number, fd in enumerate(descriptors):
                os.dup2(fd, number)
            for number in SIGNALS:
                _signal.signal(number, _signal.SIG_DFL)
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            if self.uid != os.geteuid() or not self.uid:
                os.setgroups(self.groups)
                os.setresgid(self.gid, self.gid, self.gid)
                os.setresuid(self.uid, self.uid, self.uid)
            where = cwd
            os.chdir(cwd)
            where = program
            os.execve(program, argv, environment)  # noqa: S606 # there is never a shell
        except Exception as error:
            reason = (error.errno if isinstance(error, OSError) else None) or _EINVAL
            os.write(failure_fd, b"%d %s" % (reason, where.encode("utf-8", "replace")))
        finally:
            os._exit(127)
