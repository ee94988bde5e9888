"""Fixtures of the driver's suite."""

from tests.fuse_fixtures import mount, mounted_workspace, shared_mount, workspace

__all__ = ["mount", "mounted_workspace", "shared_mount", "workspace"]
