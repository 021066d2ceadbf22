"""What lies on disk between the parts: run folders, vectors, shards, object storage."""
