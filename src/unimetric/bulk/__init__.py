"""Embedding beyond one machine: sources cut into units, each embedded on its own into a shard of the result."""
