"""The configuration file: what it may say, what it may not and where that is named, and what is made of it."""

from __future__ import annotations

import json
import os
import re
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.errors import ConfigError
from control.paths import ROOT, SCHEMAS
from control.spec import declaration, fleet, image
from control.spec.declaration import ImageReference, ShareDeclaration
from control.spec.fleet import (
    Fleet,
    build_append,
    build_start_layers,
    build_words,
    find_problems,
    get_vm,
    list_auto_forwards,
    load_fleet,
)
from control.spec.locate import Location, find_location, locate
from control.spec.network import Network
from control.spec.tomlfile import ConfigFileError
from control.wire.schema import get_validator

GOLDEN = ROOT / "tests" / "unit" / "golden_config"
GOOD = sorted((GOLDEN / "good").glob("*.toml"))
BAD = sorted((GOLDEN / "bad").glob("*.toml"))
HOME = Path("/home/ann")
EXAMPLES = int(os.environ.get("CONFIG_EXAMPLES", "300"))


@dataclass(frozen=True)
class Placed(Location):
    """A file that lies elsewhere than its directory says."""

    @property
    def path(self) -> Path:
        return self.file


def place(file: Path) -> Location:
    """Where a golden file would lie in a project of its own."""
    return Placed(file, Path("/srv/project"), Path("/srv/project/.unhinged"), HOME)


def name_of(path: Path) -> str:
    return path.stem


def load_text(tmp_path: Path, text: str, name: str = "unhinged.toml") -> Fleet:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return load_fleet(locate(Path(name), cwd=tmp_path, home=HOME))


def read_toml(path: Path) -> Any:
    import tomllib

    return tomllib.loads(path.read_text(encoding="utf-8"))


# -- golden files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOOD, ids=name_of)
def test_a_good_file_is_taken_by_the_reader_and_by_the_schema(path: Path) -> None:
    assert find_problems(place(path)) == ()
    loaded = load_fleet(place(path))
    assert loaded.notes == ()
    for name in loaded.names:
        build_words(loaded, loaded.vms[name], {"tcp:22": 2022})
    assert get_validator("config").is_valid(read_toml(path)), list(get_validator("config").iter_errors(read_toml(path)))


@pytest.mark.parametrize("path", BAD, ids=name_of)
def test_a_bad_file_is_refused_with_its_line_and_a_way_out(path: Path) -> None:
    """The first line of each says: line, message, hint, and whether a schema could see it."""
    text = path.read_text(encoding="utf-8")
    expected, *rest = [part.strip() for part in text.partition("\n")[0].removeprefix("#").split(" | ")]
    line, _, message = expected.partition(": ")
    blind = "schema cannot tell" in rest
    hints = [part for part in rest if part != "schema cannot tell"]
    found = find_problems(place(path))
    assert found
    error = found[0]
    assert str(error).startswith(f"{path}:{line}: {message}"), str(error)
    assert error.file == path
    assert len(str(error)) < 400 + len(str(path))
    for hint in hints:
        assert hint in error.hint
    if "is not TOML" not in message:
        assert error.key
        assert get_validator("config").is_valid(read_toml(path)) is blind


@pytest.mark.parametrize("path", BAD, ids=name_of)
def test_loading_raises_what_the_check_finds(path: Path) -> None:
    problems = find_problems(place(path))
    try:
        load_fleet(place(path))
    except ConfigFileError as error:
        assert str(error) in [str(problem) for problem in problems]
        return
    # What lies in a command line is seen when that VM is asked for, or its port taken; the others are untouched.
    assert "cmd" in problems[0].key


def test_the_check_shows_everything_that_is_wrong(tmp_path: Path) -> None:
    text = '[vm.a]\ncpus = 0\nmemry = 1\n[vm.b]\nextends = "c"\n[img."/"]\n'
    (tmp_path / "unhinged.toml").write_text(text)
    found = find_problems(locate(Path("unhinged.toml"), cwd=tmp_path, home=HOME))
    assert [error.line for error in found] == [2, 3, 5, 6]


# -- reader and schema -------------------------------------------------------------------------------------------------


def test_the_schema_has_the_keys_of_the_reader_and_describes_each() -> None:
    schema = json.loads((SCHEMAS / "config.json").read_text())
    definitions = schema["$defs"]
    pairs = [
        (schema, fleet.TOP_KEYS),
        (schema["properties"]["qemu"], fleet.QEMU_KEYS),
        (definitions["vm"], declaration.VM_KEYS),
        (definitions["vm"]["properties"]["limits"], declaration.LIMIT_KEYS),
        (definitions["disk"]["anyOf"][1], declaration.DISK_KEYS),
        (definitions["forward"]["anyOf"][1], declaration.FORWARD_KEYS),
        (definitions["share"]["anyOf"][1], declaration.SHARE_KEYS),
        (definitions["img"], image.IMAGE_KEYS),
        (definitions["img"]["properties"]["base_img"], image.BASE_IMAGE_KEYS),
        (definitions["img"]["properties"]["env_hook"], image.HOOK_KEYS),
        (definitions["img"]["properties"]["templates"]["items"], image.TEMPLATE_KEYS),
        (definitions["img"]["properties"]["sources"]["items"], image.SOURCE_KEYS),
    ]
    for part, keys in pairs:
        assert set(part["properties"]) == set(keys)
        assert part["additionalProperties"] is False
        for key, value in part["properties"].items():
            described = value if "description" in value else definitions[value["$ref"].rpartition("/")[2]]
            assert described["description"], key


def test_the_good_files_use_every_key_of_a_vm_and_of_an_image() -> None:
    tables: dict[str, set[str]] = {"vm": set(), "img": set()}
    for path in GOOD:
        for kind, used in tables.items():
            for table in read_toml(path).get(kind, {}).values():
                used |= set(table)
    assert tables == {"vm": set(declaration.VM_KEYS), "img": set(image.IMAGE_KEYS)}


def test_the_documentation_names_every_key_and_its_examples_are_right(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = text.partition("## `[vm.NAME]`")[2].partition("\n\nA disk as a table")[0]
    named = {name for row in table.splitlines()[4:] for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(declaration.VM_KEYS)
    for number, example in enumerate(re.findall(r"```toml\n(.*?)```", text, re.DOTALL)):
        file = tmp_path / f"{number}.toml"
        file.write_text(example.replace('sha256sum = "…"', f'sha256sum = "{"0" * 64}"'), encoding="utf-8")
        assert find_problems(place(file)) == ()
        assert get_validator("config").is_valid(read_toml(file))


def write_toml(value: Any) -> str:
    """Write a value of JSON as TOML; tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{write_text(key)} = {write_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_toml, value)) + "]"
    return write_text(value) if isinstance(value, str) else json.dumps(value)


def write_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def write_document(data: dict[str, Any]) -> str:
    return "".join(f"{write_text(key)} = {write_toml(value)}\n" for key, value in data.items())


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-2, 70000),
    st.integers(),
    # For a schema 2.0 is a whole number; for TOML, and so for the reader, it is not.
    st.floats(allow_nan=False, allow_infinity=False).filter(lambda number: not number.is_integer()),
    st.text(st.characters(codec="utf-8"), max_size=12),
    st.sampled_from(["", "auto", "builtin", "user", "none", "1G", "80:80", "tcp", "{{.a}}", "{{", "../x", "no", "a"]),
)
VALUES = st.recursive(SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=3),
    st.dictionaries(st.one_of(
        st.text(st.characters(codec="utf-8"), max_size=8),
        st.sampled_from([*declaration.VM_KEYS, *declaration.DISK_KEYS, *declaration.FORWARD_KEYS, *image.IMAGE_KEYS]),
    ), inner, max_size=4),
), max_leaves=8)  # fmt: skip
DOCUMENTS = [read_toml(path) for path in GOOD if path.stem != "empty"]


def list_places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, child in inner for place in list_places(child, (*path, key)))]


@st.composite
def changed_documents(draw: st.DrawFn) -> dict[str, Any]:
    """A good document in which one value was replaced, or one key added."""
    document: dict[str, Any] = json.loads(json.dumps(draw(st.sampled_from(DOCUMENTS))))
    path = draw(st.sampled_from([place for place in list_places(document) if place]))
    target: Any = document
    for part in path[:-1]:
        target = target[part]
    key = path[-1]
    if isinstance(target, dict) and draw(st.booleans()):
        key = draw(st.one_of(st.text("abcdefg_-./ ", max_size=5), st.sampled_from(declaration.VM_KEYS)))
    target[key] = draw(VALUES)
    return document


@given(changed_documents())
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_the_schema_refuses_the_reader_refuses(tmp_path: Path, document: dict[str, Any]) -> None:
    """And what is of a wrong type or name for the reader, the schema refuses. A schema cannot see all else."""
    (tmp_path / "f.toml").write_text(write_document(document), encoding="utf-8")
    data = read_toml(tmp_path / "f.toml")
    problems = find_problems(place(tmp_path / "f.toml"))
    if not get_validator("config").is_valid(data):
        assert problems, [error.message for error in get_validator("config").iter_errors(data)]
    elif problems:
        words = str(problems[0])
        assert "is not a key here" not in words, words
        assert " wanted" not in words or "{{" in words, words


@given(st.dictionaries(
    st.one_of(st.sampled_from(fleet.TOP_KEYS), st.text(st.characters(codec="utf-8"), max_size=5)),
    st.one_of(VALUES, st.dictionaries(st.text("ab.", max_size=3), VALUES, max_size=3)), max_size=4,
))  # fmt: skip
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_toml_is_a_fleet_or_a_config_error(tmp_path: Path, document: dict[str, Any]) -> None:
    (tmp_path / "f.toml").write_text(write_document(document), encoding="utf-8")
    for error in find_problems(place(tmp_path / "f.toml")):
        assert isinstance(error, ConfigFileError)
        assert error.line > 0
        assert str(error).isprintable()


@given(st.one_of(st.binary(max_size=200), st.text("[]{}\"'=.#,\nab1 ", max_size=60).map(str.encode)))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_fleet_or_a_config_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.toml").write_bytes(content)
    for error in find_problems(place(tmp_path / "f.toml")):
        assert isinstance(error, ConfigFileError)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a = " + b"[" * 5000, "nested too deeply"),
        (b"a = " + b"9" * 5000, "is not TOML"),
        (b"\xff\xfe[\x00v\x00", "UTF-8"),
        (b"#" * (5 * 1024 * 1024), "larger than"),
        (b"a = 2020-13-45", "is not TOML"),
    ],
)
def test_a_file_that_is_no_configuration_at_all(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "f.toml").write_bytes(content)
    with pytest.raises(ConfigFileError, match=words) as caught:
        load_fleet(place(tmp_path / "f.toml"))
    assert caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for file, words in ((tmp_path, "directory"), (tmp_path / "none", "no such file"), (Path("a\0b"), "cannot be read")):
        with pytest.raises(ConfigFileError, match=words):
            load_fleet(place(file))


@pytest.mark.parametrize(
    "line",
    ["cpus = {}", "limits = {{ cpu = {} }}", "memory = {}", "ssh = {{ port = {} }}", "ssh = {{ User = {} }}",
     "disk = {{ path = 'a', size = {} }}", "restart = {}", "vars = {{ a = {} }}\ncmd = ['{{{{.vm.a}}}}']"],
)  # fmt: skip
@pytest.mark.parametrize("number", ["0x" + "f" * 9000, "-9223372036854775809", "inf", "nan", "1e400"])
def test_numbers_beyond_all_measure(tmp_path: Path, line: str, number: str) -> None:
    (tmp_path / "f.toml").write_text("[vm.a]\n" + line.format(number) + "\n")
    problems = find_problems(place(tmp_path / "f.toml"))
    assert problems or "vars" in line
    assert all(error.line in (2, 3) and len(str(error)) < 500 for error in problems)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert load_text(tmp_path, "\ufeff[vm.a]\n").names == ("a",)


# -- the seed's example ------------------------------------------------------------------------------------------------


def test_the_example_of_the_seed_becomes_its_command_line() -> None:
    loaded = load_fleet(place(GOLDEN / "good" / "seed.toml"))
    vm = get_vm(loaded, "test-vm")
    assert vm.is_raw
    assert build_words(loaded, vm) == (
        "-nodefaults", "-machine", "q35,accel=kvm,kernel-irqchip=split", "-cpu", "host", "-smp", "2", "-m", "4096",
        "-netdev", "user,id=net0,hostfwd=tcp::2089-:22", "-device", "virtio-net-pci,netdev=net0",
        "-drive", "id=boot,file=/home/user/path/to/disk.img,format=qcow2,if=virtio",
    )  # fmt: skip
    assert vm.ssh is not None
    assert (vm.ssh.port, vm.ssh.vm_port, vm.ssh.options) == (2089, 22, {"ServerAliveInterval": 60})
    assert loaded.ssh_options["ServerAliveInterval"] == 300
    assert (loaded.qemu, loaded.qemu_img) == ("qemu-system-x86_64", "qemu-img")


def test_a_file_of_qqmgr_is_taken_as_it_is(tmp_path: Path) -> None:
    """That tool minds neither unknown keys nor a port that two VMs take in turn; a file of ours is refused for both."""
    text = "[qemu]\nbim = 1\n[vm.a]\ncolour = 3\nssh = { port = 5 }\n[vm.b]\nssh = { port = 5 }\n"
    loaded = load_text(tmp_path, text, "qqmgr.toml")
    assert loaded.names == ("a", "b")
    assert [note.partition(": ")[0].rpartition(":")[2] for note in loaded.notes] == ["2", "4", "7"]
    with pytest.raises(ConfigFileError, match="bim"):
        load_text(tmp_path, text)


# -- what a declaration means ------------------------------------------------------------------------------------------


def test_every_declared_key_arrives() -> None:
    loaded = load_fleet(place(GOLDEN / "good" / "declared.toml"))
    assert loaded.names == ("web", "db", "installer", "kernel", "bridged")
    web, db = loaded.vms["web"], loaded.vms["db"]
    assert not web.is_raw
    assert (web.memory_bytes, web.cpus, web.accel, web.display, web.clipboard, web.agent, web.sandbox) == (
        1024**3, 2, "auto", "vnc", True, True, True,
    )  # fmt: skip
    assert web.networks == (Network("user"), Network("lan", "inside"))
    assert [str(forward) for forward in web.host_forwards] == [
        "127.0.0.1:auto:22/tcp", "127.0.0.1:8080:80/tcp", "127.0.0.1:auto:443/tcp", "0.0.0.0:5353:53/udp",
        "127.0.0.1:auto:9090/tcp",
    ]  # fmt: skip
    assert [forward.key for forward in list_auto_forwards(web)] == ["tcp:22", "tcp:443", "tcp:9090"]
    assert web.share == ShareDeclaration(Path("/srv/project/src"), "src")
    assert web.image == ImageReference("builtin", "builtin")
    assert (web.limits.cpu, web.limits.file_bytes) == (1.5, 8 << 30)
    assert build_words(loaded, web) == ("-device", "virtio-balloon-pci", "-fw_cfg", "name=opt/a,string=a b")
    assert build_append(loaded, web, {"tcp:22": 4711}) == "greeting=hello ssh=4711"
    assert [disk.path for disk in db.disks] == [HOME / "disks/root.qcow2", Path("/srv/project/data.raw")]
    assert db.disks[1].size_bytes == 1024**3
    assert loaded.vms["installer"].disks[0].size_bytes == 4 * 1024**3
    assert loaded.vms["bridged"].host_forwards == ()  # its port is its own, not this host's
    assert build_start_layers(loaded, ["web", "kernel"]) == (("db", "kernel"), ("web",))


def test_a_picked_port_is_wanted_where_it_is_used(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, '[vm.a]\ncmd = ["-x {{.vm.ssh.port}}"]\nssh = { port = "auto" }\n')
    assert build_words(loaded, loaded.vms["a"], {"tcp:22": 4711}) == ("-x", "4711")
    with pytest.raises(ConfigFileError, match=r":2: .*picked when the VM starts"):
        build_words(loaded, loaded.vms["a"])


def test_a_fixed_ssh_port_is_not_confused_with_a_picked_one(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        '[vm.a]\nimage = "builtin"\ncmd = ["{{.vm.ssh.port}}"]\nssh.port = 5\nforward = "auto:22"\n',
    )
    assert build_words(loaded, loaded.vms["a"], {"tcp:22": 4711}) == ("5",)


def test_extends_merges_tables_and_replaces_the_rest(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        """
        [vm.a]
        abstract = true
        cmd = ["-a", "-b"]
        vars = { one = 1, inner = { x = 1, y = 2 }, abstract = "kept" }
        ssh = { port = 22, User = "ann" }
        [vm.b]
        extends = "a"
        vars = { two = 2, inner = { y = 3 } }
        ssh.port = 23
        [vm.c]
        extends = "b"
        cmd = ["-c"]
        ssh.port = 24
        """,
    )
    c = loaded.vms["c"]
    assert c.chain == ("c", "b", "a")
    assert c.vars == {"one": 1, "two": 2, "inner": {"x": 1, "y": 3}, "abstract": "kept"}
    assert c.cmd == ("-c",)
    assert loaded.vms["b"].cmd == ("-a", "-b")
    assert c.ssh is not None
    assert (c.ssh.port, c.ssh.options) == (24, {"User": "ann"})
    assert not c.abstract
    assert loaded.names == ("b", "c")


def test_variables_are_known_outside_of_vms_too(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        """
        [vars]
        keys = "/srv/keys"
        [qemu]
        bin = "{{.keys}}/qemu"
        [ssh]
        IdentityFile = "{{.keys}}/id"
        [img.a]
        builder = "cloud-init"
        img_size = "1G"
        base_img.path = "{{.keys}}/base"
        env = { raw = "{{.keys}}" }
        """,
    )
    assert loaded.qemu == "/srv/keys/qemu"
    assert loaded.ssh_options == {"IdentityFile": "/srv/keys/id"}
    base = loaded.images["a"].base
    assert base is not None
    assert base.path == Path("/srv/keys/base")
    assert loaded.images["a"].env == {"raw": "{{.keys}}"}
    assert loaded.images["a"].path == tmp_path / ".unhinged/img.a/stage3.img"


def test_a_word_of_a_value_is_not_taken_for_an_option(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path, '[vm.a]\nimage = "builtin"\nappend = "-serial x"\nqemu_args = ["-name", "a -serial b"]'
    )
    assert build_words(loaded, loaded.vms["a"]) == ("-name", "a -serial b")
    assert build_append(loaded, loaded.vms["a"]) == "-serial x"


def test_a_vm_that_is_not_there(tmp_path: Path) -> None:
    loaded = load_text(tmp_path, "[vm.web]\n[vm.base]\nabstract = true\n")
    with pytest.raises(ConfigError, match="no VM") as caught:
        get_vm(loaded, "wbe")
    assert "did you mean web?" in caught.value.hint
    with pytest.raises(ConfigError, match="abstract"):
        get_vm(loaded, "base")


def test_start_layers_hold_all_that_is_needed_and_nothing_else(tmp_path: Path) -> None:
    loaded = load_text(
        tmp_path,
        '[vm.a]\ndepends_on = ["b", "c"]\n[vm.b]\ndepends_on = ["d"]\n[vm.c]\ndepends_on = ["d"]\n[vm.d]\n[vm.e]\n',
    )
    assert build_start_layers(loaded, ["a"]) == (("d",), ("b", "c"), ("a",))
    assert build_start_layers(loaded, ["e", "b"]) == (("d", "e"), ("b",))
    with pytest.raises(ConfigError):
        build_start_layers(loaded, ["x"])


def test_many_circles_of_dependencies_are_found_quickly(tmp_path: Path) -> None:
    names = [f"v{number}" for number in range(60)]
    needed = json.dumps(names)
    text = "".join(f"[vm.{name}]\ndepends_on = {needed}\n" for name in names)
    begin = time.process_time()
    with pytest.raises(ConfigFileError, match="wait for each other"):
        load_text(tmp_path, text)
    assert time.process_time() - begin < 2


# -- where things are --------------------------------------------------------------------------------------------------


def test_the_project_file_goes_before_the_user_file(tmp_path: Path) -> None:
    cwd, home = tmp_path / "project", tmp_path / "home"
    files = [cwd / "unhinged.toml", cwd / "qqmgr.toml", home / ".config/unhinged/conf.toml"]
    files.append(home / ".config/qqmgr/conf.toml")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    runtimes = [cwd / ".unhinged", cwd / ".qqmgr", home / ".config/unhinged", home / ".config/qqmgr"]
    for file, runtime in zip(files, runtimes, strict=True):
        location = find_location(None, cwd=cwd, home=home)
        assert (cwd / location.file, location.runtime) == (file, runtime)
        assert location.is_shared == (file.name == "conf.toml")
        assert location.is_qqmgr == ("qqmgr" in str(file.relative_to(tmp_path)))
        # The same file, named with -c from elsewhere, has its VMs in the same place.
        assert locate(Path(os.path.relpath(file, tmp_path)), cwd=tmp_path, home=home).runtime == runtime
        file.unlink()
    with pytest.raises(ConfigError, match=r"unhinged\.toml"):
        find_location(None, cwd=cwd, home=home)


def test_a_file_given_with_c_has_its_vms_beside_it_or_where_qqmgr_left_them(tmp_path: Path) -> None:
    location = locate(Path("vms.toml"), cwd=tmp_path, home=HOME)
    assert (location.runtime, location.is_shared, location.is_qqmgr) == (tmp_path, True, False)
    (tmp_path / ".qqmgr" / "vms.toml").mkdir(parents=True)
    location = locate(Path("vms.toml"), cwd=tmp_path, home=HOME)
    assert (location.runtime, location.is_shared, location.is_qqmgr) == (tmp_path / ".qqmgr/vms.toml", False, True)
    assert location.earlier_runtimes == (tmp_path,)


def test_qqmgrs_newer_directory_is_used_where_it_is(tmp_path: Path) -> None:
    (tmp_path / ".qqmgr" / "qqmgr.toml").mkdir(parents=True)
    location = locate(Path("qqmgr.toml"), cwd=tmp_path, home=HOME)
    assert location.runtime == tmp_path / ".qqmgr/qqmgr.toml"
    assert location.earlier_runtimes == (tmp_path / ".qqmgr",)


def test_a_way_through_a_link_leads_to_the_same_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    straight = locate(Path("real/unhinged.toml"), cwd=tmp_path, home=HOME)
    assert locate(Path("link/unhinged.toml"), cwd=tmp_path, home=HOME).runtime == straight.runtime
    assert locate(Path("link/../real/unhinged.toml"), cwd=tmp_path, home=HOME).runtime == straight.runtime


# -- speed -------------------------------------------------------------------------------------------------------------


def test_a_hundred_vms_are_read_at_once(tmp_path: Path) -> None:
    """`list` reads them each time. Processor time, beside that of the bare TOML reader: some 2.6 times as much."""
    text = "".join(
        f'[vm.vm{number}]\nimage = "builtin"\nmemory = "512M"\ncpus = 2\nforward = ["{4000 + number}:80", "auto:443"]\n'
        f"[vm.vm{number}.ssh]\nport = {3000 + number}\n"
        for number in range(100)
    )
    assert len(load_text(tmp_path, text).names) == 100
    ours, bare = (
        min(measure_cpu_s(read) for _ in range(5))
        for read in (lambda: load_text(tmp_path, text), lambda: tomllib.loads(text))
    )
    assert ours < 4 * bare


def measure_cpu_s(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin
