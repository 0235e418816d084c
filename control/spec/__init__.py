"""What a VM is, before it lives (floor 1): frozen facts, checked when they are made. Its parts are imported by name.

Nothing is imported here: where the configuration lies is wanted long before what is in it.
"""
