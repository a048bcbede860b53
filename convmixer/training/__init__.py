"""Training and evaluation: runs, their loop and folder, and the processes that share a run."""
