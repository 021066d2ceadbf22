"""A database's change to another model, while it serves: ``unimetric upgrade``; `run` is its way from start to end."""
