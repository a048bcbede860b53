"""The settings of a run, and the recipes that set them."""
