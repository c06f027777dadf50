"""A fitted model at the line: newest frames of a camera, verdicts, and whom to tell."""
