"""Session providers: each module has `factory()`, which returns what `artfs.sessions.provider` calls a factory."""
