"""The test suites of artfs, a package per kind."""
