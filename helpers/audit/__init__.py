"""Judge a direction: does its patch use a natural pathway, or one that the patch opens?

result = audit(model, Site(21, "mlp_hidden"), direction, pairs)
save(result, "audit")  # as `python -m helpers.audit` does from files
score(my_test)  # any test of a direction, on models where the truth is known
"""

from helpers.audit.benchmark import score
from helpers.audit.criteria import TESTS, conclude, measured
from helpers.audit.diagnostics import scores
from helpers.audit.measure import Audit, audit
from helpers.audit.planted import FAMILIES, plant, share_opened
from helpers.audit.report import figure, figure_in_words, save, to_html, to_json, to_markdown
