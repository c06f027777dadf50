"""What lies around `oddpatch train` and `oddpatch eval`: composing, misspelt settings, endings, profiling."""
