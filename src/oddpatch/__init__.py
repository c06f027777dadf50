"""oddpatch: learn what good parts look like; find the odd patch."""

__version__ = "0.1.0"
