"""Judge a direction: does its patch use a natural pathway, or one that the patch opens?

result = audit(model, Site(21, "mlp_hidden"), direction, pairs)
save(result, "audit")  # as `python -m tools.audit` does from files
audit(model, site, Steering(v, 4.0), pairs)  # also a subspace [d, k], an SAE feature, a clamp
score(my_test)  # any test of a direction, on models where the truth is known
"""

from helpers.audit.benchmark import score
from helpers.audit.criteria import TESTS, measured
from helpers.audit.diagnostics import scores
from helpers.audit.drawing import figure, figure_in_words
from helpers.audit.interventions import Feature, Steering, Subspace
from helpers.audit.measure import Audit, audit, audit_each
from helpers.audit.planted import FAMILIES, plant, share_opened
from helpers.audit.report import save, to_html, to_json, to_markdown
from helpers.audit.verdicts import conclude
