"""A matrix of runs from one file: planned, executed, collected, and written as tables."""
