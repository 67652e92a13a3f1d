"""The work that all peers do, as plain tensors in a file that needs no helpers to read.

base, source        [pairs pos]     prompts of one length; answer, counterfactual: [pairs]
many base, ...      [pairs pos]     1,000 further pairs
direction mlp       [d_mlp]         what is evaluated, and where training starts; `resid`: [d_model]
layer                               of both sites: the MLP's hidden activation, the residual stream
sweep pairs, position pairs         how many of the pairs the sweeps take
facts base, ...     [pairs pos]     prompts padded to one length, with lengths and positions
facts directions    [pairs d_mlp]   one for each pair, at `facts layer`
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformer_lens import TransformerBridge

from helpers.claims.report import load_site
from helpers.directions.geometry import random_direction, unit
from helpers.patching.caching import cache_sites
from helpers.patching.sites import Site
from helpers.tasks.facts import known_facts, load_facts
from helpers.tasks.facts import make_pairs as make_fact_pairs
from helpers.tasks.ioi import make_pairs
from helpers.tasks.pairs import Pairs

FACTS_LAYER = 6
TEMPLATE = "fun"  # one template, so that all prompts have one length: what most tools need


def make_problem(model: TransformerBridge, path: Path, *, pairs: int, many: int) -> dict:
    """Write the problem to a file, and return it."""
    layer = load_site("ioi")["layer"]
    train = make_pairs(model, pairs, split="train", seed=0, templates=[TEMPLATE])
    large = make_pairs(model, many, split="train", seed=1, templates=[TEMPLATE])
    problem = {
        "layer": torch.tensor(layer),
        "sweep pairs": torch.tensor(max(1, pairs // 5)),
        "position pairs": torch.tensor(max(1, pairs // 16)),
        **_stacked(train),
        **{f"many {name}": value for name, value in _stacked(large).items()},
        **_directions(model, train, layer),
        **_facts(model),
    }
    save_file({name: tensor.contiguous() for name, tensor in problem.items()}, path)
    return problem


def _stacked(pairs: Pairs) -> dict[str, Tensor]:
    return {
        "base": torch.stack(pairs.base_tokens),
        "source": torch.stack(pairs.source_tokens),
        "answer": pairs.answer,
        "counterfactual": pairs.counterfactual,
    }


def _directions(model: TransformerBridge, pairs: Pairs, layer: int) -> dict[str, Tensor]:
    """The first principal component of the change: a direction that does something."""
    kinds = {"mlp": "mlp_hidden", "resid": "resid_post"}
    cached = cache_sites(model, pairs, [Site(layer, kind) for kind in kinds.values()])
    return {
        f"direction {name}": torch.linalg.svd(at.source - at.base, full_matrices=False).Vh[0]
        for name, at in zip(kinds, cached, strict=True)
    }


def _facts(model: TransformerBridge, n: int = 40) -> dict[str, Tensor]:
    facts = known_facts(model, load_facts(["country_capital", "country_continent"]))
    pairs = make_fact_pairs(model, facts, n, seed=0)
    fields = {
        "layer": torch.tensor(FACTS_LAYER),
        "base": pad_sequence(pairs.base_tokens, batch_first=True),
        "source": pad_sequence(pairs.source_tokens, batch_first=True),
        "base length": torch.tensor([len(row) for row in pairs.base_tokens]),
        "source length": torch.tensor([len(row) for row in pairs.source_tokens]),
        "position": pairs.position,
        "source position": pairs.source_position,
        "answer": pairs.answer,
        "counterfactual": pairs.counterfactual,
        "directions": unit(
            torch.stack([random_direction(model.cfg.d_mlp, seed=row) for row in range(n)])
        ),
    }
    return {f"facts {name}": value for name, value in fields.items()}
