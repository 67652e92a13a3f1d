"""Judge a direction: does its patch use a natural pathway, or one that the patch opens?

result = audit(model, Site(21, "mlp_hidden"), direction, pairs)
print(result.summary)  # `tools.audit.report` writes it to files
audit(model, site, basis, pairs)  # a subspace [d, k]; `tools.audit.changes` has more
plant(family, ...)  # a model with a pathway planted in it, where the truth is known
"""

from helpers.audit.criteria import TESTS, measured
from helpers.audit.diagnostics import scores
from helpers.audit.interventions import Intervention, Subspace
from helpers.audit.measure import Audit, audit, audit_each
from helpers.audit.planted import FAMILIES, plant
from helpers.audit.verdicts import conclude
