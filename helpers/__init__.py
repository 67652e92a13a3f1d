"""Helpers of the tutorial on interpretability illusions in subspace patching."""

import os

__version__ = "0.1.0"

# Before torch is imported, which reads it once: its threads sleep while they wait for each other.
# By default they spin, and beside one busy process that makes training several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
