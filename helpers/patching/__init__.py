"""Where to patch, and what the patch does: prompts run once, then only what changes.

cached = cache_pairs(model, pairs, Site(21, "mlp_hidden"))
cached.measure(cached.source)  # the patch of the whole component
"""

from helpers.patching.cached import Acts, CachedPairs, effects, logit_differences
from helpers.patching.caching import cache_pairs, cache_sites
from helpers.patching.metrics import Effect, Estimate
from helpers.patching.reading import Reader, states
from helpers.patching.sites import Site, before_mlp, check_sites
from helpers.patching.suffix import recording, run_from
