"""Predict a property of whole structures from frozen features by ridge regression.

Run it with: python property_readout.py MODEL DATA KEY

KEY is a number in the `info` of every structure of the file DATA: a band gap, a formation energy,
a stability.
"""

import sys

import ase.io
import numpy as np

from evenfield import model_zoo
from evenfield.finetune.features import structure_features


REGULARISATION = 0.01  # per training structure

reference, data, key = sys.argv[1:4]
model = model_zoo.load(reference)
frames = ase.io.read(data, ":")
labels = np.array([atoms.info[key] for atoms in frames])
features = structure_features(model, frames)  # (structures, features), means over atoms

# Every fourth structure is held out. Split by composition if your file has series of one kind.
test = np.arange(len(frames)) % 4 == 0
train = ~test

# Features of very different size would be penalised differently.
mean = features[train].mean(axis=0)
spread = features[train].std(axis=0) + 1e-9
standardised = (features - mean) / spread
intercept = np.ones((len(frames), 1))
rows = np.hstack([standardised, intercept])

# Ridge regression: (A^T A + penalty) w = A^T y
matrix = rows[train].T @ rows[train]
moment = rows[train].T @ labels[train]
penalty = REGULARISATION * train.sum() * np.eye(len(matrix))
weights = np.linalg.solve(matrix + penalty, moment)

predicted = rows[test] @ weights
error = np.abs(predicted - labels[test]).mean()
error_of_mean = np.abs(labels[train].mean() - labels[test]).mean()
print(f"test MAE of {key}: {error:.4g}; of the mean: {error_of_mean:.4g}; {test.sum()} held out")
