"""Helpers of the tutorial on interpretability illusions in subspace patching."""

__version__ = "0.1.0"
