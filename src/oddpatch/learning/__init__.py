"""How a model learns and is tested under a Lightning Trainer, on one device or several."""
