"""Grid paths of artifacts, as `ArtifactMetadata.key` spells them: pure functions of the store's sandbox."""

from __future__ import annotations

from artfs import grid
from artfs.models import GridKeyComponents
from artfs.store.operations.base import Operations


class GridOperations(Operations):
    """Errors: GridError (a ValueError) for ids that nothing can have; nothing is looked up."""

    def get_canonical_prefix(self, session_id: str) -> str:
        """`grid/<sandbox>/<session>/`, the id as it is given.  Errors: GridError."""
        return self._store._prefixes.of(session_id)

    def generate_artifact_key(self, session_id: str, artifact_id: str) -> str:
        """`grid/<sandbox>/<session>/<artifact>`.  Errors: GridError."""
        return self._store._prefixes.key(session_id, artifact_id)

    def parse_grid_key(self, grid_key: str) -> GridKeyComponents | None:
        """A grid path of any sandbox taken apart, in any spelling; None for what is none.  Raises nothing."""
        return grid.parse(grid_key)

    def get_session_prefix_pattern(self) -> str:
        """What the grid paths of all sessions of the sandbox begin with."""
        return f"{grid.ROOT}/{self._store.sandbox_id}/"
