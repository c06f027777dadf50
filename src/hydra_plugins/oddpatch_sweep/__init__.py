"""Sweepers and launchers of oddpatch; Hydra finds them here, and takes plugins from no other package."""
