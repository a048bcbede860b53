"""Train a small ConvMixer from Python on scikit-learn's digits, and evaluate it.

Needs `pip install -e ".[train]"`. The folder of the run then holds curves, metrics and weights.
"""

import sys

from convmixer import evaluate, load_recipe, train

folder = sys.argv[1] if len(sys.argv) > 1 else "runs/example"

# Any setting of a recipe can be replaced; `convmixer train --help` lists them.
config = load_recipe("digits", {"epochs": 2, "model.dim": 32, "model.depth": 2})
summary = train(config, folder)
print(f"test accuracy {summary['test_accuracy']:.2f} % after {summary['epochs']} epochs")

scores = evaluate(folder, silent=True)
print(f"the right class is among the best five in {scores['test_accuracy_top5']:.2f} %")
