"""Cleaning of image collections: copies, leaks, wrong labels, strangers and unusable images."""
