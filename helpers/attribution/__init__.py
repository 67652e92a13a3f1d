"""Shortcuts: what a gradient says about patches that were not made.

scores = attribution(model, pairs, ["mlp_out"], method="relp")  # one backward pass, every cell
"""

from helpers.attribution.scores import METHODS, agreement, attribution, coefficients, linearised
