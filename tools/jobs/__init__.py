"""`python -m tools.jobs`: a sweep, or an audit of many directions, as jobs of a machine or cluster.

In Python: `work.facts_job` is one of them; `running.run` takes any list of `running.Job`.
"""
