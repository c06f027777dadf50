"""Data in MVTec layout: decoding, preprocessing, datasets. Import from the submodules: each loads only what it needs."""
