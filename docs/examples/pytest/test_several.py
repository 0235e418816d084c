"""Several machines in one test, and one for several tests."""


def test_a_network_of_their_own(vm_lan):
    server, client = vm_lan("server", "client")
    server.succeed("(while :; do echo served | nc -l -p 7000; done) > /dev/null 2>&1 &")
    server.wait_for_open_port(7000)
    assert client.succeed("nc server 7000 < /dev/null") == "served\n"
    assert client.address != server.address
    names = {client.succeed("hostname"), server.succeed("hostname")}
    keys = {machine.succeed("cat /etc/machine-id /sys/class/net/eth1/address") for machine in (client, server)}
    assert len(names) == len(keys) == 2


def test_as_many_as_are_wanted(vm_factory):
    small, large = vm_factory("small", memory="256M"), vm_factory("large", memory="512M")
    total = [int(machine.succeed("awk '/MemTotal/ {print $2}' /proc/meminfo")) for machine in (small, large)]
    assert total[0] < 256 * 1024 < total[1]


def test_shared_first(vm_session):
    vm_session.succeed("echo first > /tmp/who")


def test_shared_second(vm_session):
    assert vm_session.succeed("cat /tmp/who") == "first\n"
