"""Vectors and rows in memory beside the database, from which queries are answered in a fraction of its time.

The database stays the only truth: what is here is read from it, kept up with it before every answer, and never used
when it is of another version.
"""
