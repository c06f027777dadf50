"""How far a measured number can be trusted: bootstrap intervals, and tests of two detectors on the same images."""
