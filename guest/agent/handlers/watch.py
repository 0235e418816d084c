"""`file_watch` (guest floor): tells the host what changes in a file or directory, as a job."""

from .. import files, parameters
from ..watcher import Watcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from ..dispatch import Call


def file_watch(call: "Call", params: "dict[str, Any]") -> None:
    path = files.encode(params["path"])
    files.answer(call, path, _watch(call, path, params.get("recursive", False)))


def _watch(call: "Call", path: bytes, recursive: bool) -> "Generator[None, None, dict[str, Any]]":
    watcher = Watcher(call.agent, path, recursive)
    try:
        yield from watcher.look_first()
        job = call.start_job()
    except BaseException:
        watcher.close()
        raise
    job.on_cancel = watcher.cancel
    watcher.start(job)
    return {"job": job.id, "directories": watcher.count}


METHODS: "dict[str, tuple[Any, ...]]" = {
    "file_watch": (file_watch, {"path": (True, files.check_path), "recursive": (False, parameters.boolean)}),
}
