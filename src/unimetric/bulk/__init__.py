"""Embedding on many machines: sources are divided into units, each embedded into a shard of the result."""
