"""Training and evaluating: runs, their loop, their folder, and the processes that share one."""
