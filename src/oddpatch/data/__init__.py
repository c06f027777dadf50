"""Data in MVTec layout. Import from the submodules, so that each use loads only what it needs."""
