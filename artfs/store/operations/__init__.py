"""What an `ArtifactStore` is composed of: one class for each group of calls, usable by itself, too."""
