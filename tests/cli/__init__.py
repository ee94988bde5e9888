"""The command line: parsing, output, exit codes, and real mounts by the command that users run."""
