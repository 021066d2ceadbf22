"""The commands: one module and one typed function each; its signature is the list of options."""
