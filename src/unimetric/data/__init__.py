"""Where images and labels come from: sources, splits, decoding. Knows no models."""
