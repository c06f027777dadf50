"""Using a fitted model: single images, folders, and what is anomalous where."""
