"""Published layouts. A converter is a module of this package with a function `plan(source, options)`, found by name."""
