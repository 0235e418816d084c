"""What the three launchers share (floor 6): options, the foreground session, the terminal, the exit code."""
