"""Drive virtual machines from a terminal, a test, a CI job or a browser: the host side of unhinged-vm."""

__version__ = "0.1.0"
