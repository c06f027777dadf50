"""Tables, curves and pictures made from finished predictions."""
