"""Detectors, one method per file; importing them loads neither Lightning nor Hydra."""
