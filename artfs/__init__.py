"""artfs: namespaces with scopes, sessions and checkpoints, as a mounted tree and as a Python API."""

__version__ = "0.1.0"
