"""The parts of the web console that need no server: who is let in, what viewers may send, which host is ours."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.cli.main import parse
from control.cli.web import find_certificate
from control.errors import ConfigError
from control.spec.locate import locate
from control.vm.hands import find_keys, parse_keys
from control.web.access import (
    LOGIN_WINDOW_S,
    LOGINS_IN_ALL,
    LOGINS_PER_ADDRESS,
    SESSION_S,
    TICKET_S,
    Access,
    AccessError,
    read_or_make_token,
)
from control.web.api import ROUTES
from control.web.context import Settings
from control.web.guard import is_our_host
from control.web.machines import Machines
from control.web.openapi import build_openapi
from control.web.rfb import LookingOnly, NotRfb
from control.web.tls import open_tls
from control.web.users import Users

HERE = "127.0.0.1"
TOKEN = "the-token-of-this-test"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(tmp_path: Path, clock: Clock) -> Access:
    return Access(TOKEN, Users(tmp_path / "users.json"), tmp_path / "sessions.json", clock=clock)


# -- who is let in -------------------------------------------------------------------------------------------------


def test_the_token_gives_a_session_that_outlives_the_server(access: Access, tmp_path: Path, clock: Clock) -> None:
    cookie = access.log_in_by_token(TOKEN, HERE)
    session = access.find_session(cookie)
    assert session is not None and (session.user, session.role) == ("token", "operator")
    again = Access(TOKEN, access.users, tmp_path / "sessions.json", clock=clock)
    assert again.find_session(cookie) == session
    other = Access("another token", access.users, tmp_path / "sessions.json", clock=clock)
    assert other.find_session(cookie) is None, "a new token ends the sessions of the one before"
    clock.now += SESSION_S + 1
    assert access.find_session(cookie) is None


def test_what_is_kept_lets_nobody_in(access: Access, tmp_path: Path) -> None:
    cookie = access.log_in_by_token(TOKEN, HERE)
    link = access.share("web", "token", 60.0)
    kept = (tmp_path / "sessions.json").read_text()
    assert cookie not in kept and link not in kept and TOKEN not in kept
    assert stat.S_IMODE((tmp_path / "sessions.json").stat().st_mode) == 0o600
    key = json.loads(kept)["sessions"][0]["key"]
    assert access.find_session(key) is None


def test_a_broken_store_only_ends_sessions(access: Access, tmp_path: Path, clock: Clock) -> None:
    cookie = access.log_in_by_token(TOKEN, HERE)
    (tmp_path / "sessions.json").write_text('{"sessions": [{"key": 1')
    again = Access(TOKEN, access.users, tmp_path / "sessions.json", clock=clock)
    assert again.find_session(cookie) is None
    assert again.find_session(again.log_in_by_token(TOKEN, HERE)) is not None


def test_who_logs_out_is_out(access: Access) -> None:
    cookie = access.log_in_by_token(TOKEN, HERE)
    session = access.find_session(cookie)
    assert session is not None
    access.log_out(session)
    assert access.find_session(cookie) is None


def test_a_ticket_is_good_once_and_for_one_thing(access: Access, clock: Clock) -> None:
    mine = access.find_session(access.log_in_by_token(TOKEN, HERE))
    other = access.find_session(access.log_in_by_token(TOKEN, HERE))
    assert mine is not None and other is not None

    def refused(ticket: str, session: object, vm: str, purpose: str) -> str:
        with pytest.raises(AccessError) as caught:
            access.redeem_ticket(ticket, session, vm, purpose)  # type: ignore[arg-type]
        assert caught.value.status == 403
        return str(caught.value)

    ticket = access.issue_ticket(mine, "web", "screen")
    access.redeem_ticket(ticket, mine, "web", "screen")
    assert "used before" in refused(ticket, mine, "web", "screen")
    assert "not known" in refused("made up", mine, "web", "screen")
    assert "something else" in refused(access.issue_ticket(mine, "web", "screen"), mine, "db", "screen")
    assert "something else" in refused(access.issue_ticket(mine, "web", "screen"), mine, "web", "console:ttyS0")
    assert "something else" in refused(access.issue_ticket(mine, "web", "screen"), other, "web", "screen")
    late = access.issue_ticket(mine, "web", "screen")
    clock.now += TICKET_S + 1
    assert "expired" in refused(late, mine, "web", "screen")


def test_failed_logins_are_slowed_down(access: Access, clock: Clock) -> None:
    for _ in range(LOGINS_PER_ADDRESS):
        with pytest.raises(AccessError, match="not the one"):
            access.log_in_by_token("guess", HERE)
    with pytest.raises(AccessError, match="too many") as caught:
        access.log_in_by_token(TOKEN, HERE)
    assert caught.value.status == 429 and caught.value.retry_s is not None
    assert access.log_in_by_token(TOKEN, "10.0.0.1"), "others are not held up"
    clock.now += LOGIN_WINDOW_S + 1
    assert access.log_in_by_token(TOKEN, HERE)


def test_many_addresses_guess_no_more_than_one_could(access: Access) -> None:
    for number in range(LOGINS_IN_ALL):
        with pytest.raises(AccessError, match="not the one"):
            access.log_in_by_token("guess", f"10.0.{number // 250}.{number % 250}")
    with pytest.raises(AccessError, match="too many"):
        access.log_in_by_token("guess", "10.9.9.9")


def test_a_password_that_is_right_counts_as_no_failure(access: Access) -> None:
    access.users.add("ann", "operator", "correct horse")
    for _ in range(LOGINS_PER_ADDRESS + 2):
        assert access.log_in_by_password("ann", "correct horse", HERE)
    with pytest.raises(AccessError, match="wrong"):
        access.log_in_by_password("ann", "wrong horse", HERE)


def test_a_link_shows_one_machine_and_ends(access: Access, clock: Clock) -> None:
    cookie, vm = access.log_in_by_share(access.share("web", "token", 60.0), HERE)
    session = access.find_session(cookie)
    assert session is not None and vm == "web"
    assert (session.role, session.may_see("web"), session.may_see("db")) == ("viewer", True, False)
    assert access.end_shares("web") == 1
    assert access.find_session(cookie) is None
    late = access.share("web", "token", 60.0)
    clock.now += 61
    with pytest.raises(AccessError, match="nowhere"):
        access.log_in_by_share(late, HERE)


def test_users_have_roles_and_passwords_that_are_not_kept(tmp_path: Path) -> None:
    users = Users(tmp_path / "users.json")
    users.add("ann", "operator", "correct horse")
    users.add("bob", "viewer", "battery staple")
    assert stat.S_IMODE(users.path.stat().st_mode) == 0o600
    assert "correct horse" not in users.path.read_text()
    found = users.check("ann", "correct horse")
    assert found is not None and found.role == "operator"
    assert users.check("ann", "battery staple") is None
    assert users.check("nobody", "correct horse") is None
    assert users.remove("bob") and not users.remove("bob")
    assert users.find_role("bob") is None


@pytest.mark.parametrize(("name", "password"), [("ann", "short"), ("an/n", "long enough"), ("", "long enough")])
def test_names_and_passwords_that_cannot_be(tmp_path: Path, name: str, password: str) -> None:
    users = Users(tmp_path / "users.json")
    with pytest.raises(ConfigError):
        users.add(name, "viewer", password)
    assert not users.path.exists()


@pytest.mark.parametrize("text", ["", "{}", '{"users": 1}', '{"users": [{"name": "a", "role": "king", "hash": "x"}]}'])
def test_a_file_that_is_no_file_of_users_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "users.json").write_text(text)
    with pytest.raises(ConfigError, match=r"users\.json"):
        Users(tmp_path / "users.json").check("ann", "a password")


def test_a_role_that_changes_changes_what_a_session_may_do(access: Access) -> None:
    access.users.add("ann", "operator", "correct horse")
    cookie = access.log_in_by_password("ann", "correct horse", HERE)
    access.users.add("ann", "viewer", "correct horse")
    session = access.find_session(cookie)
    assert session is not None and session.role == "viewer"
    access.users.remove("ann")
    assert access.find_session(cookie) is None


def test_the_token_stays_until_a_new_one_is_wanted(tmp_path: Path) -> None:
    first = read_or_make_token(tmp_path / "token")
    assert read_or_make_token(tmp_path / "token") == first
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert read_or_make_token(tmp_path / "token", renew=True) != first


# -- TLS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "is_tls"),
    [
        ((), False),
        (("--address", "::1"), False),
        (("--tls",), True),
        (("--address", "192.0.2.1"), True),
        (("--address", "0.0.0.0"), True),
        (("--address", "0.0.0.0", "--no-tls"), False),
    ],
)
def test_off_loopback_there_is_tls_unless_said_otherwise(tmp_path: Path, words: tuple[str, ...], is_tls: bool) -> None:
    certificate, key = find_certificate(parse(["web", *words]), tmp_path)
    assert (certificate is not None, key is not None) == (is_tls, is_tls)
    if certificate is not None and key is not None:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        open_tls(certificate, key)
        assert find_certificate(parse(["web", *words]), tmp_path) == (certificate, key)
        before = certificate.read_bytes()
        find_certificate(parse(["web", *words, "--host-name", "box.example"]), tmp_path)
        assert certificate.read_bytes() != before, "it is made anew for a name it does not have"


# -- which host is ours --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "host", "is_ours"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "[::1]", True),
        ("127.0.0.1", "evil.example", False),
        ("127.0.0.1", "127.0.0.1.evil.example", False),
        ("127.0.0.1", "10.0.0.5", False),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "box.example", True),
        ("0.0.0.0", "10.0.0.5", True),
        ("0.0.0.0", "evil.example", False),
        ("0.0.0.0", "localhost", False),
    ],
)
def test_names_that_lead_to_us_are_known(tmp_path: Path, address: str, host: str, is_ours: bool) -> None:
    settings = Settings(address, 0, tmp_path, {}, hosts=("box.example",))
    assert is_our_host(host, settings) is is_ours


# -- what a viewer's browser may send to a VNC server --------------------------------------------------------------

GREETING = b"RFB 003.008\n\x01\x01"
WANTED = b"\x02\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x10" + b"\x03\x01\x00\x00\x00\x00\x05\x00\x03\x20"
KEY, POINTER, CUT = b"\x04\x01\x00\x00\x00\x00\x00\x61", b"\x05\x01\x00\x10\x00\x10", b"\x06\0\0\0\0\0\0\3abc"
QEMU_KEY, EXTENDED_CUT = b"\xff\x00" + b"\1" * 10, b"\x06\0\0\0\xff\xff\xff\xfcabcd"


@given(st.lists(st.sampled_from([KEY, POINTER, CUT, QEMU_KEY, EXTENDED_CUT, WANTED]), max_size=20), st.integers(1, 40))
def test_keys_and_pointers_stay_behind_however_they_are_cut(messages: list[bytes], piece: int) -> None:
    sent = GREETING + b"".join(messages)
    looking, passed = LookingOnly(), b""
    for start in range(0, len(sent), piece):
        passed += looking.pass_on(sent[start : start + piece])
    assert passed == GREETING + b"".join(each for each in messages if each is WANTED)


@pytest.mark.parametrize(
    "sent", [b"GET / HTTP/1.1\r\n\r\n", b"RFB 003.008\n\x02", GREETING + b"\x99", GREETING + b"\xff\x07"]
)
def test_what_is_no_vnc_is_refused(sent: bytes) -> None:
    with pytest.raises(NotRfb):
        LookingOnly().pass_on(sent)


@given(st.binary(max_size=300))
def test_garbage_is_refused_or_kept_short(data: bytes) -> None:
    looking = LookingOnly()
    try:
        passed = looking.pass_on(GREETING + data)
    except NotRfb:
        return
    assert len(passed) <= len(GREETING) + len(data)


# -- keys ----------------------------------------------------------------------------------------------------------


@given(st.characters(min_codepoint=32, max_codepoint=126))
def test_each_ascii_character_is_on_a_key(character: str) -> None:
    keys = find_keys(character)
    assert keys and keys[0] != "" and len(keys) <= 2


@pytest.mark.parametrize("text", ["", "ctrl-", "ctrl-nothing", "ü", "ctrl alt"])
def test_keys_that_are_none_are_named(text: str) -> None:
    if text == "ctrl-":  # the key of the minus
        assert parse_keys(text) == ("ctrl", "minus")
        return
    with pytest.raises(ConfigError, match="key"):
        parse_keys(text)


# -- the API's description -----------------------------------------------------------------------------------------


def test_the_openapi_document_is_one_and_complete() -> None:
    document = build_openapi(ROUTES)
    assert document["openapi"].startswith("3.1")
    assert sum(len(methods) for methods in document["paths"].values()) == len(ROUTES)
    text = json.dumps(document)
    names = [part["operationId"] for methods in document["paths"].values() for part in methods.values()]
    assert len(names) == len(set(names)), "each operation has a name of its own"
    for part in text.split('"$ref": "#/')[1:]:
        at = document
        for word in part.split('"')[0].split("/"):
            at = at[word]
    assert "$id" not in text


def test_without_a_file_there_are_the_machines_that_run(tmp_path: Path) -> None:
    machines = Machines(locate(Path("unhinged.toml"), cwd=tmp_path, home=tmp_path))
    try:
        assert machines.list_names() == []
        with pytest.raises(ConfigError, match="no machine"):
            machines.check("../..")
    finally:
        machines.close()
