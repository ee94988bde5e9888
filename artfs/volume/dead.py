"""Where nodes end up whose number is void: a restore replaced them, or their namespace is gone.

Every operation on them is ESTALE, as on NFS; the kernel's references to them are only counted down.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, NoReturn

from artfs.errors import FsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from artfs.volume.node import Node


class DeadTree:
    """Answers as `artfs.volume.tree.Tree` does."""

    read_only = True
    lasting = False
    number = 0

    def rest(self, node: Node) -> None:
        """Nothing is kept."""

    def __getattr__(self, name: str) -> Any:
        return self._stale

    def _stale(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise FsError(errno.ESTALE)


DEAD: Any = DeadTree()


def void(nodes: Iterable[Node]) -> None:
    """Their numbers mean nothing any more: whoever holds one gets ESTALE."""
    for node in nodes:
        node.tree = DEAD
        node.blocks = None
        node.entry = None
