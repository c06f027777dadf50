"""Whether parts still look as those that a model was calibrated on: an exact test on a stream without end."""
