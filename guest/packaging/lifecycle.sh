# What the packages do to a running system. The scripts of the .deb and of the .rpm both begin with this.

HOME_OF_AGENT=/usr/lib/unhinged-agent
UNIT=unhinged-agent.service
PORT=/dev/virtio-ports/org.unhinged.agent.0

compile() {
	forget_bytecode
	# Python only loses a little time where this is not possible.
	python3 -I -m compileall -q -f "$HOME_OF_AGENT" || echo "unhinged-agent: its bytecode could not be made" >&2
}

forget_bytecode() {
	find "$HOME_OF_AGENT" -depth -name __pycache__ -type d -exec rm -rf {} + 2> /dev/null || :
}

# systemd runs here: not so in a chroot, a container or an image that is being made.
is_running_system() {
	[ -d /run/systemd/system ]
}

# A package tool that the agent itself runs dies when the agent does, because nobody reads its output then. So what ends the
# agent waits until that tool has ended. Prints the tool's process, nothing when the agent is not above us.
find_command_of_agent() {
	main=$(systemctl show --property=MainPID --value "$UNIT" 2> /dev/null) || return 0
	case $main in '' | 0) return 0 ;; esac
	child=$$
	while [ "$child" -gt 1 ]; do
		parent=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$child/status" 2> /dev/null)
		[ "$parent" = "$main" ] && echo "$child" && return 0
		child=${parent:-0}
	done
}

# Does `systemctl WORD` for the agent's unit, now or when the command of the agent that we are part of has ended.
tell_unit() {
	command=$(find_command_of_agent)
	if [ -z "$command" ]; then
		systemctl "$1" "$UNIT" || :
	else
		# The end of the command still has to be told to the host: its agent takes a second for that at most.
		systemd-run --quiet --collect --no-block --description="$1 the guest agent" \
			/bin/sh -c "tail --pid=$command -f /dev/null; sleep 2; systemctl $1 $UNIT" || :
	fi
}

reload() {
	systemctl daemon-reload || :
	if command -v udevadm > /dev/null; then udevadm control --reload || :; fi
}

# After an installation or an upgrade: the agent that runs is the one that was just unpacked.
settle_in() {
	compile
	is_running_system || return 0
	reload
	if systemctl --quiet is-active "$UNIT"; then
		tell_unit restart
		return 0
	fi
	# udev has to look at the port again, to tag and to link it; then it is there, or this machine has none.
	if command -v udevadm > /dev/null; then
		udevadm trigger --subsystem-match=virtio-ports --action=change || :
		udevadm settle --timeout=10 || :
	fi
	if [ -e "$PORT" ]; then tell_unit start; fi
}

# Before a removal.
step_down() {
	if is_running_system; then tell_unit stop; fi
	forget_bytecode
}

# After a removal.
step_away() {
	if is_running_system; then reload; fi
}
