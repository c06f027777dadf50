"""What lies around `train.py` and `eval.py`: composing, explaining misspelt settings, endings, profiling."""
