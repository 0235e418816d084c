# Runs in the Debian image while it is made, after its packages are installed (iso/debian/system.py).
set -eu

# As in the built-in guest: root logs in on the consoles without a password, and over the network with a key only.
passwd --quiet --delete root

systemctl --quiet enable systemd-networkd.service resolv-conf.path
# Nothing here waits for the network, and a machine without a card would be held up for two minutes.
systemctl --quiet disable systemd-networkd-wait-online.service
# Housekeeping that would fall into the first minutes of every new machine.
systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
	fstrim.timer modprobe@efi_pstore.service modprobe@dm_mod.service modprobe@loop.service \
	sys-kernel-debug.mount sys-kernel-tracing.mount systemd-pcrphase.service systemd-pcrphase-sysinit.service systemd-pcrphase-initrd.service

mkdir -p /mnt/host

# What every machine has to make for itself.
rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed
: > /etc/machine-id

# How this image was made is no business of its apt.
rm -f /etc/apt/apt.conf.d/99mmdebstrap
