"""The command `unhinged` (floor 6): VMs kept in a file, driven by name. `main` is the way in; each other module holds a
few commands and is imported only for them.
"""
