"""Vectors in memory beside the database, from which queries are answered in a fraction of its time.

- `base`: the `VectorSearch` that all ways of searching implement
"""
