"""One file per source; the file name is its name on the command line and it defines ``SOURCE``."""
