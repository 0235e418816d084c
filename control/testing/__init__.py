"""VMs in tests (floor 6): the pytest plugin `unhinged`, and the machine that its fixtures give. See docs/testing.md.

The plugin is loaded by every pytest run beside which this package is installed: it imports nothing else before a test
wants a machine.
"""
