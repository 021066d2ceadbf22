"""Embedding beyond one machine: sources cut into pieces, each embedded on its own into a fragment of the result."""
