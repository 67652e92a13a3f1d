"""What every lesson does first and last."""

import importlib.metadata

import torch

import helpers
from helpers import plots
from helpers.models import PACKAGED, model_name

PACKAGES = ("torch", "transformer_lens", "transformers")


def start(seed: int = 0) -> None:
    """Seed torch's global generator, set the figure style and print what this lesson runs on.

    The helpers take explicit seeds and never read the global generator: it is seeded for the code
    you add.
    """
    torch.manual_seed(seed)
    plots.use_style()
    versions = [f"{package} {importlib.metadata.version(package)}" for package in PACKAGES]
    print(" · ".join([f"helpers {helpers.__version__}", *versions, f"model {model_name()}"]))


def expect(name: str, value: float, expected: float, *, tolerance: float) -> None:
    """Compare a headline number with the one this lesson's text speaks of.

    The text was written for the packaged model, so on any other model the number is only shown.

    Raises:
        AssertionError: on the packaged model, the number is further off than `tolerance`.
    """
    if model_name() != PACKAGED:
        print(f"{name}: {value:.3g} (the text says {expected:g}, for {PACKAGED})")
        return
    if abs(value - expected) > tolerance:
        raise AssertionError(f"{name}: {value:.4g}, but the text says {expected:g} ± {tolerance:g}")
    print(f"PASS  {name}: {expected:g} ± {tolerance:g}")
