"""What every lesson does first."""

import importlib.metadata

import numpy as np
import torch

import helpers
from helpers import plots
from helpers.models import model_name

PACKAGES = ("torch", "transformer_lens", "transformers")


def start(seed: int = 0) -> None:
    """Seed the global generators, set the figure style and print what this lesson runs on.

    The helpers take explicit seeds and do not read the global generators; these are seeded for the
    code you add.
    """
    torch.manual_seed(seed)
    np.random.seed(seed)
    plots.use_style()
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    print(" · ".join([f"helpers {helpers.__version__}", *versions, f"model {model_name()}"]))
