"""The supervisor's own program: `supervise.py NAME DIRECTORY REPORT_FD LOCK_FD` (floor 3), started by `reach`.

Name and directory are there for people who look at a list of processes. The lock is held by keeping its descriptor
open: whoever started us has taken it, and there is no moment at which nobody holds it. The job comes on stdin, perhaps
only after a while: whoever started us works it out while we load. Stdin that ends without one means that there is none.
"""

import os
import sys


def _detach() -> None:
    """Become nobody's child, before there is much of us: whoever started us waits for the first half only."""
    if os.fork():
        os._exit(0)


def main(report_descriptor: int) -> int:
    """Start the QEMU of the job on stdin, then load what watches it while QEMU sets itself up, and see it through."""
    import json
    from contextlib import ExitStack
    from pathlib import Path

    from control.errors import ControlError
    from control.paths import InstanceFiles
    from control.spec.plain import from_plain
    from control.vm.birth import start_qemu
    from control.vm.instance import note_failure
    from control.vm.report import Report

    report = Report(report_descriptor)
    try:
        if not (word := sys.stdin.read()):
            return 0
        sys.stdin.close()
        os.open(os.devnull, os.O_RDONLY)  # takes the number 0 again, so that nothing else does
        job = json.loads(word)
        files = InstanceFiles(Path(job["directory"]), Path(job["sockets"]))
        with ExitStack() as stack:
            newborn = None
            if not job["adopt"]:
                try:
                    starting = start_qemu(
                        from_plain(job["spec"]), files, ports=job["ports"], restart=job["restart"], waits=job["waits"]
                    )
                    newborn = stack.enter_context(starting)
                except ControlError as error:
                    note_failure(files, error)
                    raise
            import asyncio

            from control.vm.supervisor import supervise

            asyncio.run(supervise(files, job, report, newborn))
    except ControlError as error:
        report.tell_failure(error)
        return error.exit_code
    except Exception as error:
        from control.log import LOG

        LOG.exception("the supervisor failed")
        report.tell_failure(ControlError(f"an error of ours: {error!r}", hint="please report it"))
        return 1
    return 0


if __name__ == "__main__":
    _detach()
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.exit(main(int(sys.argv[3])))
