"""What a test found, and the files and tables made of it. Names that readers of the files need load nothing else."""

#: Files in a run's folder.
METRICS, PREDICTIONS = "metrics.json", "predictions.csv"
#: Where the weights of a backbone that has learned nothing come from.
RANDOM = "random"
