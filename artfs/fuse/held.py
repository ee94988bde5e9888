"""The nodes that the kernel holds, by the number that it knows each by, and the replies that give it one.

A node is held from the reply that names it until its last FORGET; only then does an inode without a name die.
"""

from __future__ import annotations

import errno

from artfs.errors import FsError
from artfs.fuse import wire
from artfs.fuse.virtual import later
from artfs.volume.node import Node
from artfs.volume.waiting import MustWait, run


class Held:
    """`valid`: seconds that the kernel may keep names and attributes of namespaces.  `grown`: numbers of files whose
    st_blocks it does not know, because it asks for them after a close, but not after an fsync."""

    def __init__(self, root: Node, valid: int) -> None:
        self.held: dict[int, Node] = {1: root}
        self.valid = valid
        self.grown: set[int] = set()
        root.looks = 1 << 40

    def enter(self, node: Node) -> bytes:
        """The entry reply, which gives the kernel one more reference."""
        node.looks += 1
        self.held[node.num] = node
        return node.entry or self.encode(node)

    def encode(self, node: Node) -> bytes:
        reply = node.entry = wire.entry(node, self.valid if node.tree.lasting else 0)
        return reply

    def node(self, ino: int) -> Node:
        try:
            return self.held[ino]
        except KeyError:
            raise FsError(errno.ESTALE) from None

    def forget(self, ino: int, count: int) -> int:
        node = self.held.get(ino)
        if node is not None:
            node.looks -= count
            if node.looks <= 0:
                node.looks = 0
                del self.held[ino]
                self.grown.discard(ino)
                self._rest(node)
        return 0

    def _rest(self, node: Node) -> None:
        try:
            node.tree.rest(node)
        except MustWait as must:
            wait = must.wait

            async def again() -> None:
                await wait()
                await run(node.tree.rest, node)

            later(again)

    def peek(self, node: Node) -> bytes:
        """The entry reply without a reference."""
        return node.entry or self.encode(node)
