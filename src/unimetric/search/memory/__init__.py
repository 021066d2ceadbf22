"""Vectors and rows in memory beside the database, from which queries are answered in a fraction of its time.

The database stays the only truth: what is here is read from it, kept up with it before every answer, and never used
when it is of another version.

- `base`: the `VectorSearch` that all ways of searching implement
- `search`: the `VectorSearch` in memory
- `state`: the rows of one version, and the way to those of the next; `blocks` holds them
- `exact`: exact nearest vectors
- `graph`: a graph for more vectors than can be compared; `walking` takes candidates from it, under conditions too
- `files`: vectors, rows and graph on the disk; `building` makes them, and uses again what still holds of earlier ones
"""
