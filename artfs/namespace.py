"""The namespace operations of a store by themselves: `NamespaceOperations(store)`."""

from artfs.store.operations.namespaces import NamespaceOperations

__all__ = ["NamespaceOperations"]
