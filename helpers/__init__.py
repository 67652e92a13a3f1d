"""Helpers of the tutorial on interpretability illusions in subspace patching."""

import os

__version__ = "1.0.0"

# Before torch is imported, which reads it once: how its threads wait for each other. By default
# they spin for long, and beside one busy process that makes training several times slower. Here
# they spin for a moment, for most waits are short, and then sleep.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
if not WAITING.keys() & os.environ.keys():
    os.environ.update(WAITING)
