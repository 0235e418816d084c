"""What the three launchers share (floor 5): options, the foreground session, the terminal, the exit code."""
