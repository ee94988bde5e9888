"""The benchmark: artfs beside a native directory, a null pyfuse3 file system and bindfs, in one run."""
