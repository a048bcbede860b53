"""The ablations of the paper's tables, and its pictures of weights."""
