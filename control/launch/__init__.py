"""What the three launchers share (floor 4): options, the foreground session, the terminal, the exit code."""
