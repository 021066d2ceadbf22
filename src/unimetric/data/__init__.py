"""Images and labels: sources, splits, sampling, decoding; nothing here depends on models."""
