"""What the commands of the command line do, one function each, for use from Python as well."""
