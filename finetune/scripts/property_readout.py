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
features = structure_features(model, frames)  # (S, d), means over atoms

test = np.arange(len(frames)) % 4 == 0
mean = features[~test].mean(0)
spread = features[~test].std(0) + 1e-9
# the column of ones is the intercept
rows = np.hstack([(features - mean) / spread, np.ones((len(frames), 1))])

train_rows = rows[~test]
penalty = REGULARISATION * len(train_rows) * np.eye(rows.shape[1])
weights = np.linalg.solve(train_rows.T @ train_rows + penalty, train_rows.T @ labels[~test])

error = np.abs(rows[test] @ weights - labels[test]).mean()
baseline = np.abs(labels[~test].mean() - labels[test]).mean()
print(f"test MAE of {key}: {error:.4g}; of the mean: {baseline:.4g}; {test.sum()} held out")
