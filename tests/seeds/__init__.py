"""The documents that the Python API descends from, as tests: their code blocks run, with the imports changed alone."""
