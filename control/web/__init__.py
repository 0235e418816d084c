"""The web console (floor 5): the machines of a configuration in a browser, and over HTTP (docs/web.md)."""
