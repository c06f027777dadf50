"""What a test found, and the files and tables made of it."""
