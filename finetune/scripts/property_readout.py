"""A property of whole structures from frozen features by ridge regression: python property_readout.py MODEL DATA KEY

KEY is a number in the info of every structure of the file: a band gap, a formation energy, a stability.
"""

import sys

import ase.io
import numpy as np

from ... import model_zoo
from ..features import structure_features


reference, data, key = sys.argv[1:4]
model, frames = model_zoo.load(reference), ase.io.read(data, ":")
features = structure_features(model, frames)  # (S, d), means over atoms
labels = np.array([atoms.info[key] for atoms in frames])
test = np.arange(len(frames)) % 4 == 0
mean, spread = features[~test].mean(0), features[~test].std(0) + 1e-9
rows = np.hstack([(features - mean) / spread, np.ones((len(frames), 1))])
normal = rows[~test].T @ rows[~test] + 0.01 * (~test).sum() * np.eye(rows.shape[1])
weights = np.linalg.solve(normal, rows[~test].T @ labels[~test])
error, baseline = (
    np.abs(p - labels[test]).mean() for p in (rows[test] @ weights, labels[~test].mean())
)
print(
    f"test MAE of {key}: {error:.4g}; of the mean: {baseline:.4g}; {test.sum()} structures held out"
)
