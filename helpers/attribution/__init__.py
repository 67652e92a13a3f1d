"""Shortcuts: what a gradient says about patches that were not made.

scores = attribution(model, pairs, ["mlp_out"], method="relp")  # one backward pass, every cell
"""

from helpers.attribution.rules import RELP, RULES, linearised
from helpers.attribution.scores import METHODS, Agreement, agreement, attribution, coefficients
