"""Child processes (floor 2): the only room that starts them."""
