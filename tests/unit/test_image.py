"""Images: downloads from a real server, what counts as changed, and what is refused before anything is booted."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from control.errors import ControlError, HostError, ImageBuildError, StateError, WaitTimeout
from control.image.build import build_image
from control.image.download import Limits, fetch
from control.image.manifest import find_state, hash_inputs
from control.image.setup_boot import _leave_out_ours
from control.image.workshop import Machine, Workshop, show_lines
from control.process.run import run
from control.spec.image import BaseImage, EnvHook, ImageDeclaration, Source, TemplateFile
from control.streams import Completed, PipedRunner

CONTENT = b"an image" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Limits(silence_s=0.5, slow_bytes=1000, slow_s=0.5, most_bytes=100_000)


class Handler(BaseHTTPRequestHandler):
    """A path for each way a server can be; `asked` counts."""

    asked = 0
    over = threading.Event()

    def do_GET(self) -> None:
        type(self).asked += 1
        match self.path:
            case "/good":
                self._begin(len(CONTENT))
                self.wfile.write(CONTENT)
            case "/moved":
                self.send_response(302)
                self.send_header("Location", "/good")
                self.end_headers()
            case "/short":
                self._begin(len(CONTENT))
                self.wfile.write(CONTENT[:100])
            case "/silent":
                self._begin(len(CONTENT))
                self.wfile.write(CONTENT[:100])
                self.over.wait(30)
            case "/slow":
                self._begin(len(CONTENT))
                while not self.over.wait(0.05):
                    self.wfile.write(b"x")
            case "/headers":
                self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                while not self.over.wait(0.05):
                    self.wfile.write(b"x")
            case "/silence":
                self.over.wait(30)
            case "/endless":
                self._begin(None)
                while not self.over.is_set():
                    self.wfile.write(bytes(10_000))
            case "/nonsense":
                self.wfile.write(b"\xff\xfe\r\n\r\n")
            case _:
                self.send_error(404)

    def _begin(self, length: int | None) -> None:
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Clients that have had enough go away; that is what is tested."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    Handler.over.clear()
    Handler.asked = 0
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        Handler.over.set()
        server.shutdown()
        thread.join()


def get(url: str, directory: Path, sha256: str = SHA256) -> Path:
    return fetch(url, sha256, directory, lambda _: None, QUICK)


def test_a_download_is_kept_under_its_hash_and_not_done_twice(server: str, tmp_path: Path) -> None:
    found = get(f"{server}/moved", tmp_path / "cache")
    assert found == tmp_path / "cache" / SHA256 and found.read_bytes() == CONTENT
    asked = Handler.asked
    assert get(f"{server}/good", tmp_path / "cache") == found and Handler.asked == asked
    found.write_bytes(b"rotten")
    assert get(f"{server}/good", tmp_path / "cache").read_bytes() == CONTENT
    assert get(f"file://{found}", tmp_path / "other").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "the server says 404"),
        ("/short", "the connection ended after 100 of 8000 bytes"),
        ("/silent", r"nothing came for 0\.5 s"),
        ("/slow", "too slow"),
        ("/headers", "its answer had not begun"),
        ("/silence", "cannot be downloaded: "),
        ("/endless", "it has no end"),
        ("/nonsense", "cannot be downloaded"),
    ],
)
def test_a_server_that_fails_leaves_nothing(server: str, tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ImageBuildError, match=message) as caught:
        get(f"{server}{path}", tmp_path)
    assert str(caught.value).startswith(f"{server}{path} cannot be downloaded") and caught.value.hint
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{SHA256}.lock"]


def test_what_hashes_to_something_else_is_not_kept_and_both_are_named(server: str, tmp_path: Path) -> None:
    wanted = "0" * 64
    with pytest.raises(ImageBuildError, match=f"its sha256 is {SHA256}, not {wanted}"):
        get(f"{server}/good", tmp_path, wanted)
    assert [entry.name for entry in tmp_path.iterdir()] == [f"{wanted}.lock"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:1/x", "Connection refused"),
        ("http://me:you@127.0.0.1/x", "nonnumeric port"),
        ("file:///no/such/file", "No such file"),
        ("file:///etc", "Is a directory"),
        ("http://", "no host given"),
    ],
)
def test_no_server_at_all(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(ImageBuildError, match=message):
        get(url, tmp_path)


# -- what counts as changed --------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> ImageDeclaration:
    for name in ("base.img", "hook.sh", "user-data.tpl"):
        (tmp_path / name).write_text(name)
    return ImageDeclaration(
        name="one",
        builder="cloud-init",
        path=tmp_path / "img.one" / "stage3.img",
        img_size="1G",
        base=BaseImage(path=tmp_path / "base.img"),
        env={"name": "web"},
        env_hook=EnvHook(tmp_path / "hook.sh", "sh"),
        templates=(TemplateFile(tmp_path / "user-data.tpl", "user-data"),),
        sources=(Source("http://127.0.0.1:1/x", SHA256, "x"),),
        build_args=("-m", "{{.memory}}"),
    )


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    def find_machine() -> Machine:
        raise AssertionError("nothing is to be booted")

    return Workshop(
        run, lambda _: None, lambda _: nullcontext(), find_machine, lambda _: (), tmp_path / "cache", tmp_path
    )


def test_each_input_changes_the_hash_and_none_else(image: ImageDeclaration, tmp_path: Path) -> None:
    def both() -> list[ImageDeclaration]:
        assert image.base is not None and image.env_hook is not None
        return [
            image,
            replace(image, img_size="2G"),
            replace(image, base=BaseImage(url="http://a/b", sha256sum=SHA256)),
            replace(image, env={"name": "db"}),
            replace(image, env_hook=replace(image.env_hook, interpreter="bash")),
            replace(image, templates=()),
            replace(image, sources=()),
            replace(image, build_args=()),
        ]

    hashes = [hash_inputs(each, {"memory": "1"}) for each in both()]
    assert len(set(hashes)) == len(hashes)
    assert hash_inputs(image, {"memory": "2"}) not in hashes
    # Where something is downloaded from is no matter.
    assert hash_inputs(replace(image, sources=(Source("http://other", SHA256, "x"),)), {"memory": "1"}) == hashes[0]
    for name in ("base.img", "hook.sh", "user-data.tpl"):
        before = hash_inputs(image, {})
        (tmp_path / name).write_text("something else")
        assert hash_inputs(image, {}) != before
        (tmp_path / name).unlink()
        assert hash_inputs(image, {}) != before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"inputs": 1}'])
def test_an_image_with_a_damaged_manifest_is_stale(image: ImageDeclaration, text: str) -> None:
    image.path.parent.mkdir()
    image.path.touch()
    (image.path.parent / "manifest.json").write_text(text)
    assert find_state(image, {}) == "stale"


# -- what is refused ---------------------------------------------------------------------------------------------------


def refuse(image: ImageDeclaration, shop: Workshop) -> ControlError:
    """Build it, which fails; an older image is as it was, and nothing half made is left."""
    image.path.parent.mkdir(exist_ok=True)
    image.path.write_text("older")
    with pytest.raises(ControlError) as caught:
        build_image(image, shop, force=True)
    assert str(caught.value).startswith("[img.one] ")
    assert image.path.read_text() == "older"
    assert not list(image.path.parent.glob("build.*"))
    return caught.value


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo oh no >&2; exit 3", "ended with exit code 3"),
        ("echo oh no >&2; kill -9 $$", "ended with exit code -9"),
        ("echo oh no >&2; echo '{}'; echo", "is not a JSON object"),
        ("echo oh no >&2; echo '[]'", "is not a JSON object"),
        ("echo oh no >&2", "is not a JSON object"),
    ],
)
def test_a_hook_that_fails_shows_what_it_said(
    image: ImageDeclaration, shop: Workshop, tmp_path: Path, script: str, message: str
) -> None:
    (tmp_path / "hook.sh").write_text(script)
    error = refuse(image, shop)
    assert message in str(error) and error.evidence == ("oh no",)


def test_a_hook_that_cannot_be_run(image: ImageDeclaration, shop: Workshop, tmp_path: Path) -> None:
    hook = tmp_path / "hook.sh"
    assert "chmod +x" in refuse(replace(image, env_hook=EnvHook(hook)), shop).hint
    assert "no-such" in str(refuse(replace(image, env_hook=EnvHook(hook, "no-such")), shop))
    assert "there is no env_hook" in str(refuse(replace(image, env_hook=EnvHook(tmp_path / "none")), shop))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\n{{if}}", "user-data.tpl: line 2: "),
        (b"a\n\n{{.nome}}", "user-data.tpl: line 3: {{.nome}} is not defined"),
        (b"{{range .name}}\n{{end}}", "user-data.tpl: line 1: "),
        (b"\xff", "is not text in UTF-8"),
        (None, "there is no template"),
    ],
)
def test_a_template_that_is_wrong_names_its_line(
    image: ImageDeclaration, shop: Workshop, tmp_path: Path, text: bytes | None, message: str
) -> None:
    template = tmp_path / "user-data.tpl"
    if text is None:
        template.unlink()
    else:
        template.write_bytes(text)
    assert message in str(refuse(replace(image, env_hook=None), shop))


def test_a_base_image_that_is_not_the_one(image: ImageDeclaration, shop: Workshop, tmp_path: Path) -> None:
    plain = replace(image, env_hook=None, sources=())
    error = refuse(replace(plain, base=BaseImage(path=tmp_path / "base.img", sha256sum=SHA256)), shop)
    assert SHA256 in str(error) and hashlib.sha256(b"base.img").hexdigest() in str(error)
    assert "there is no base image" in str(refuse(replace(plain, base=BaseImage(path=tmp_path / "none")), shop))
    assert "Connection refused" in str(refuse(replace(image, env_hook=None), shop))
    (tmp_path / "base.img").write_bytes(bytes(2 << 20))
    error = refuse(replace(plain, img_size="1M"), shop)
    assert "img_size is 1 MiB, and what it is made from has 2 MiB" in str(error)


def test_a_downloaded_image_that_names_files_of_this_host_is_not_opened(
    image: ImageDeclaration, shop: Workshop, tmp_path: Path
) -> None:
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/hostname", "-F", "raw", str(tmp_path / "evil")]
    assert asyncio.run(run(argv, timeout_s=30)).return_code == 0
    checksum = hashlib.sha256((tmp_path / "evil").read_bytes()).hexdigest()
    base = BaseImage(url=f"file://{tmp_path}/evil", sha256sum=checksum)
    assert "is not opened" in str(refuse(replace(image, env_hook=None, sources=(), base=base), shop))


def test_a_program_that_is_missing_names_its_package(
    image: ImageDeclaration, shop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = replace(image, env_hook=None, sources=())
    monkeypatch.setenv("PATH", str(tmp_path))
    error = refuse(plain, shop)
    assert str(error) == "[img.one] xorriso is not installed" and error.hint == "apt-get install xorriso"
    raw = replace(image, builder="raw", path=image.path.with_name("image.img"))
    with pytest.raises(HostError, match="qemu-img is not installed") as caught:
        build_image(raw, shop)
    assert caught.value.hint == "apt-get install qemu-utils"


def test_a_full_disk_is_said(image: ImageDeclaration, shop: Workshop, tmp_path: Path) -> None:
    # /dev/full is what a full disk is like: what is written to it does not fit.
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / f"{SHA256}.partial").symlink_to("/dev/full")
    (tmp_path / "source").write_bytes(CONTENT)
    source = Source(f"file://{tmp_path}/source", SHA256, "x")
    error = refuse(replace(image, env_hook=None, sources=(source,)), shop)
    assert "No space left on device" in str(error) and "room" in error.hint and not (cache / SHA256).exists()


def test_a_disk_that_was_written_to_is_not_emptied_unasked(
    image: ImageDeclaration, shop: Workshop, tmp_path: Path
) -> None:
    raw = ImageDeclaration("one", "raw", tmp_path / "img.one" / "image.img", "1M")
    assert build_image(raw, shop) and not build_image(raw, shop)
    assert raw.path.stat().st_size == 1 << 20
    larger = replace(raw, img_size="2097152")
    assert build_image(larger, shop) and raw.path.stat().st_size == 2 << 20
    raw.path.write_bytes(b"mine" * 4096)
    with pytest.raises(StateError, match="has been written to") as caught:
        build_image(raw, shop)
    assert "--force" in caught.value.hint and raw.path.read_bytes().startswith(b"mine")
    assert build_image(raw, shop, force=True) and not raw.path.read_bytes().strip(b"\0")


def test_what_a_killed_build_has_left_is_swept_away(image: ImageDeclaration, shop: Workshop, tmp_path: Path) -> None:
    raw = ImageDeclaration("one", "raw", tmp_path / "img.one" / "image.img", "1M")
    left = raw.path.parent / "build.left"
    left.mkdir(parents=True)
    (left / "stage1.img").touch()
    (raw.path.parent / "build.log").touch()
    assert build_image(raw, shop)
    assert not left.exists() and (raw.path.parent / "build.log").exists()
    assert raw.path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("words", [("-serial", "mon:stdio"), ("--monitor", "stdio"), ("-qmp", "tcp::1")])
def test_words_that_ours_stand_for_are_left_out(words: tuple[str, str]) -> None:
    assert _leave_out_ours(["-m", "1", *words, "-nographic", "-daemonize", "-no-shutdown"]) == ["-m", "1", "-nographic"]
    assert _leave_out_ours(["-m", "1", words[0]]) == ["-m", "1"]


# -- images of our own -------------------------------------------------------------------------------------------------


def fake_runner(code: int | None, stderr: bytes) -> PipedRunner:
    """One that starts nothing, and tells that the program ended so."""

    async def pretend(argv: Sequence[str], **options: Any) -> Completed:
        assert argv[1].endswith(("iso/debian/build.py", "iso/build.py"))
        for part in (stderr[:5], stderr[5:]):  # a line comes in pieces
            options["on_stderr"](part)
        return Completed(tuple(argv), code, b"", stderr, 1.0)

    return pretend


@pytest.mark.parametrize("builder", ["debian", "builtin"])
def test_a_door_that_fails_says_why_as_it_does_for_make(shop: Workshop, tmp_path: Path, builder: Any) -> None:
    notes: list[str] = []
    own = ImageDeclaration("one", builder, tmp_path / "img.one" / "file")
    said = b"image    1.0 s  asking apt\nimage: mmdebstrap is not installed\n  hint: apt-get install mmdebstrap\n"
    with pytest.raises(ImageBuildError, match=r"^\[img\.one\] mmdebstrap is not installed$") as caught:
        build_image(own, replace(shop, runner=fake_runner(1, said), note=notes.append))
    assert caught.value.hint == "apt-get install mmdebstrap" and "asking apt" in caught.value.evidence[0]
    assert notes == said.decode().splitlines()
    with pytest.raises(ImageBuildError, match=r"build\.py ended with exit code -9$"):
        build_image(own, replace(shop, runner=fake_runner(-9, b"")))
    with pytest.raises(WaitTimeout, match=r"build\.py to end") as late:
        build_image(own, replace(shop, runner=fake_runner(None, said)))
    assert late.value.evidence


def test_a_builtin_image_is_made_when_it_is_missing(shop: Workshop, tmp_path: Path) -> None:
    own = ImageDeclaration("one", "builtin", tmp_path / "unhinged.iso")
    ready = replace(shop, runner=fake_runner(0, b""))
    assert build_image(own, ready)
    own.path.touch()
    assert not build_image(own, ready) and build_image(own, ready, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["unhinged.iso"]


def test_a_vm_that_is_started_meanwhile_keeps_its_image(shop: Workshop, tmp_path: Path) -> None:
    raw = ImageDeclaration("one", "raw", tmp_path / "img.one" / "image.img", "1M")
    assert build_image(raw, shop)
    overlays: list[list[Path]] = [[tmp_path / "vm.web" / "overlay.qcow2"], []]
    with pytest.raises(StateError, match=r"vm\.web") as caught:
        build_image(replace(raw, img_size="2M"), replace(shop, find_overlays=lambda _: overlays.pop()))
    assert "overlay.qcow2" in caught.value.hint and raw.path.stat().st_size == 1 << 20


def test_lines_are_few_short_and_safe() -> None:
    lines = show_lines(b"\x1b[31mred\n\n" + b"x" * 1000 + b"\n" + b"\xff\n")
    assert lines == ("[31mred", "x" * 300, "\ufffd")
    assert len(show_lines(b"a\n" * 100)) == 12
