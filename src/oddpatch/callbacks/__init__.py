"""Callbacks read what a run produces and write progress, pictures, tables and loggers; they change nothing."""
