"""Packs the guest agent for guests that are not ours: zipapp, .deb, .rpm (room: image); `build.py` is the door."""
