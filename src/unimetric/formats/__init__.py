"""Formats on disk that several packages share: run folders, vectors, shards, object storage."""
