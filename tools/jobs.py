"""A sweep of facts over layers as jobs, of a cluster for instance.

    jobs = [joblib.delayed(facts_job)(model_name(), pairs, layer) for layer in layers]
    table = pd.concat(joblib.Parallel(n_jobs=1)(jobs))

Jobs load what they need by name, so that any worker can do them: put the call inside
`joblib.parallel_config(backend="dask")` (or `"ray"`).
"""

import pandas as pd

from helpers.directions import facts_at_layer, shared_model
from helpers.patching import Site, cache_pairs
from helpers.tasks import Pairs


def facts_job(name: str, pairs: Pairs, layer: int, *, steps: int = 10) -> pd.DataFrame:
    """`facts_at_layer` of a model that is loaded by name; see there."""
    cached = cache_pairs(shared_model(name), pairs, Site(layer, "mlp_hidden"))
    return facts_at_layer(cached, steps=steps)
