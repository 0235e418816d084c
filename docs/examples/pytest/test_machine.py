"""What can be done with one machine. Each test has its own: a clone of one that has booted."""

import socket

import pytest


def test_commands(vm):
    assert vm.succeed("uname -s") == "Linux\n"
    assert vm.succeed(["printf", "%s", "no shell; no $expansion"]) == "no shell; no $expansion"
    vm.fail("test -e /etc/no-such-file")
    outcome = vm.execute("echo out; echo err >&2; exit 3")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (3, "out\n", "err\n")
    assert vm.succeed("cat > /tmp/x; wc -c < /tmp/x", stdin="x" * 1_000_000).strip() == "1000000"
    told = vm.succeed("pwd; echo $NAME; id -u", cwd="/tmp", env={"NAME": "value"}, user="nobody")
    assert told == "/tmp\nvalue\n65534\n"


def test_what_one_test_breaks_is_whole_in_the_next(vm):
    vm.succeed("rm -rf /usr/lib/unhinged /etc")


def test_it_is_whole(vm):
    vm.succeed("test -d /usr/lib/unhinged", "test -d /etc")


def test_waiting(vm):
    vm.succeed("(sleep 1; touch /tmp/late) > /dev/null 2>&1 &")
    vm.wait_until_succeeds("test -e /tmp/late")
    vm.wait_for_file("/tmp/late")
    vm.succeed("(sleep 1; rm /tmp/late) > /dev/null 2>&1 &")
    vm.wait_until_fails("test -e /tmp/late")
    vm.wait_for_unit("dropbear")
    vm.wait_for_open_port(22)
    vm.wait_for_closed_port(8080)


def test_console(vm):
    here = vm.console_position
    vm.succeed("echo the first word > /dev/console")
    vm.wait_for_console_text(r"^the first \w+$")
    vm.succeed("echo a later word > /dev/console")
    vm.wait_for_console_text("a later word", since=here)
    with vm.session() as session:
        assert session.run("echo typed; false").exit_code == 1


def test_files(vm, tmp_path):
    (tmp_path / "tree/in").mkdir(parents=True)
    (tmp_path / "tree/in/file").write_text("content")
    vm.copy_to(tmp_path / "tree", "/tmp/tree")
    assert vm.read_file("/tmp/tree/in/file") == b"content"
    vm.write_file("/srv/made/here", "by the test")
    vm.copy_from("/srv/made", tmp_path / "made")
    assert (tmp_path / "made/here").read_text() == "by the test"


@pytest.mark.vm(files={"/srv/greeter": "greeter.sh", "/srv/note": b"bytes"}, memory="256M", cpus=2)
def test_what_it_is_like(vm):
    assert vm.succeed("nproc; cat /srv/note") == "2\nbytes"
    vm.succeed("chmod +x /srv/greeter; /srv/greeter > /dev/null 2>&1 &")
    vm.wait_for_open_port(8080)
    with socket.create_connection(("127.0.0.1", vm.forward_port(8080)), timeout=30) as connection:
        assert connection.makefile().readline() == f"hello from {vm.name}\n"


def test_screen(vm):
    assert vm.screenshot().read_bytes().startswith(b"\x89PNG")


def test_its_end_and_another_beginning(vm):
    vm.succeed("touch /tmp/forgotten")
    vm.reboot()
    vm.fail("test -e /tmp/forgotten")
    vm.crash()
    assert not vm.is_running
    vm.start()
    vm.shutdown()


@pytest.mark.vm(allow="panic")
def test_a_panic_that_is_wanted(vm):
    vm.execute("(sleep 0.5; echo c > /proc/sysrq-trigger) > /dev/null 2>&1 &")
    vm.wait_for_console_text("Kernel panic - not syncing")
