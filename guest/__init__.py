"""What runs inside the guest. Nothing here imports the host's code, and the host imports nothing from here."""
