"""Artifacts: a fitted model as a file that another engine runs, held to the numbers of torch before it is written."""
