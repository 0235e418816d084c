"""When what happened to a VM (floor 2): written while it lives, read and drawn afterwards. See docs/timeline.md."""
