"""Features kept on disk, so that jobs which share images, preprocessing and backbone compute them once."""
