"""One file per baseline; the file name is its name on the command line."""
