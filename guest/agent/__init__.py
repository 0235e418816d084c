"""The guest agent (guest floor): answers the host over virtio-serial, console and share.

It uses the standard library only and imports nothing but itself, because it runs where nothing is installed.
Start-up time is a feature: a module imported at start must be needed for the answer to `get_agent_info`; everything
else is imported when it is first used. That is why annotations are written as strings and `typing` is not imported.
"""

VERSION = "0.1.0"
PROTOCOL = 1
