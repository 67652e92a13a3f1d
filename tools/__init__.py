"""What no lesson imports: the commands, and what they share with people's own code.

Commands run lessons, audits, assignments and grading, publishing, reference values. `audit.report`,
`audit.changes`, `audit.benchmark`, `pair_files`, `counterfact` and `jobs` serve your own code, too.
"""
