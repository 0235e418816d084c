"""Makes a Debian disk image and the seed for other people's cloud images (room: image); `build.py` is the door."""
