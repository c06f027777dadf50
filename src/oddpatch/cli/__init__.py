"""What `oddpatch` on the command line can do: one file per command or group of commands."""
