"""`python -m tools.audit`: judge directions, steering vectors and SAE features from files.

In Python: `report.save(result, "audit")` writes what `helpers.audit.audit` found, `changes` has
what else can be audited, `benchmark.score(my_test)` compares a test of your own with the audit's.
"""
