"""Many jobs from one command: what a job is, when it is finished, and what a sweep ends with.

`job` runs one job of a sweep; `hydra_plugins.oddpatch_sweep` plans and launches them; `outcome` and `table` end it.
"""
