"""Other programs and libraries that this package works with, one file each; none is imported before it is used."""
