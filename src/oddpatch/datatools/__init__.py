"""What `oddpatch data ...` does: one file per tool, usable from Python as well."""
