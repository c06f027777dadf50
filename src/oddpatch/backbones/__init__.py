"""Frozen, pretrained feature extractors behind one interface."""
