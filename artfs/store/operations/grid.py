"""Grid paths of artifacts, as `ArtifactMetadata.key` spells them: pure functions of the store's sandbox."""

from __future__ import annotations

from artfs import grid
from artfs.models import GridKeyComponents
from artfs.store.operations.base import Operations


class GridOperations(Operations):
    def get_canonical_prefix(self, session_id: str) -> str:
        """`grid/<sandbox>/<session>/`, the id as it is given.  Errors: GridError."""
        return grid.canonical_prefix(self._store.sandbox_id, session_id, use_legacy_format=True)

    def generate_artifact_key(self, session_id: str, artifact_id: str) -> str:
        """`grid/<sandbox>/<session>/<artifact>`.  Errors: GridError."""
        return self.get_canonical_prefix(session_id) + grid.check_artifact_id(artifact_id)

    def parse_grid_key(self, grid_key: str) -> GridKeyComponents | None:
        """A grid path of any sandbox taken apart, in any spelling; None for what is none.  Raises nothing."""
        return grid.parse(grid_key)

    def get_session_prefix_pattern(self) -> str:
        """What the grid paths of all sessions of the sandbox begin with."""
        return f"{grid.ROOT}/{self._store.sandbox_id}/"
