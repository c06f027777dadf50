"""One run on several devices: processes that each take a share of the images, and are one model in the end."""
