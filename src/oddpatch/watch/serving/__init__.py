"""A watch as web pages: how it stands, for people and for machines that ask."""

from oddpatch.watch.serving.server import Server, listen

__all__ = ["Server", "listen"]
