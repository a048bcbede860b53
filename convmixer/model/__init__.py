"""The network, its parts, the models of the paper's tables, and their checkpoints."""
