"""The ways messages travel between guest and host, one module each (guest floor)."""
