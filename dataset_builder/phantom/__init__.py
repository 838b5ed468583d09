"""The synthetic cell behind the source ``phantom``."""
