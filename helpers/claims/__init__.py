"""What the paper says, what we measured, and whether they agree; the report.

`report.record` judges a measurement by a rule that was written before it.
"""

from helpers.claims.reference import save_sweep, shipped_evidence, shipped_sweep
