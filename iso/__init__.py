"""Builds the built-in guest image; standard-library Python plus the distribution's own tools (room: image)."""
