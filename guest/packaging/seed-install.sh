# Installs the agent from the seed ISO; cloud-init runs it at a machine's first boot, from the directory it lies in.
set -eu
seed=$(dirname "$0")

if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2> /dev/null; then
	echo "unhinged-agent: not installed: this image has no Python 3.9 or newer" >&2
	exit 1
fi

if command -v dpkg > /dev/null && dpkg --install "$seed/unhinged-agent.deb"; then
	exit 0
fi

# No dpkg here, or it could not: the one file, under the same unit.
install -D -m 755 "$seed/unhinged-agent.pyz" /usr/local/lib/unhinged-agent/unhinged-agent.pyz
install -D -m 644 "$seed/unhinged-agent.service" /etc/systemd/system/unhinged-agent.service
install -D -m 644 "$seed/60-unhinged-agent.rules" /etc/udev/rules.d/60-unhinged-agent.rules
mkdir -p /etc/systemd/system/unhinged-agent.service.d
cat > /etc/systemd/system/unhinged-agent.service.d/zipapp.conf << 'END'
[Service]
ExecStart=
ExecStart=/usr/bin/env python3 -I -S -B /usr/local/lib/unhinged-agent/unhinged-agent.pyz
END
systemctl daemon-reload
udevadm control --reload
udevadm trigger --subsystem-match=virtio-ports --action=change
udevadm settle --timeout=10 || :
if [ -e /dev/virtio-ports/org.unhinged.agent.0 ]; then systemctl start unhinged-agent.service; fi
