"""What a map of shortcuts costs beside the patches that it stands for.

    python -m benchmarks.shortcuts

Every layer and token of the stream, attention and MLP outputs of one pair, from tokens: exact
patches by this project and by TransformerLens's hooks, a forward pass for each, and estimates.
TransformerLens's time is that of some cells, evenly over the layers, times the number of cells: a
hooked forward pass costs the same wherever it patches. Writes `benchmarks/results/shortcuts.md`.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from helpers.attribution import attribution
from helpers.models import Model, load_model
from helpers.patching import Site
from helpers.tasks import ioi
from helpers.tasks.pairs import Pairs
from tools.evidence.attribution import KINDS, exact
from tools.pages import markdown_table

ROUNDS, SOME = 2, 5  # of each, the faster one counts; layers that TransformerLens patches
RESULT = Path(__file__).parent / "results" / "shortcuts.md"


def by_hooks(model: Model, pairs: Pairs, layers: list[int]) -> Tensor:
    """Exact effects by TransformerLens, at the last token: `[kinds layers]`."""
    (base,), (source,) = pairs.base_tokens, pairs.source_tokens
    names = {Site(at, kind).hook_name for at in layers for kind in KINDS}
    with torch.no_grad():
        clean, cache = model.run_with_cache(source[None], names_filter=lambda name: name in names)
        clean = model(base[None])[0, -1]

        def effect(at: int, kind: str) -> Tensor:
            name = Site(at, kind).hook_name

            def patch(value: Tensor, hook: object) -> Tensor:
                value = value.clone()
                value[:, -1] = cache[name][:, -1]
                return value

            logits = model.run_with_hooks(base[None], fwd_hooks=[(name, patch)])[0, -1]
            change = logits - clean
            return change[pairs.answer[0]] - change[pairs.counterfactual[0]]

        return torch.stack([torch.stack([effect(at, kind) for at in layers]) for kind in KINDS])


def seconds(work: Callable[[], object]) -> float:
    """Processor time of the faster round: of one thread, so other processes hardly matter."""
    taken = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def main() -> None:
    torch.set_num_threads(1)
    model = load_model(device="cpu")
    pairs = ioi.with_other_repeated(ioi.make_pairs(model, 1, split="train", seed=0))
    layers = torch.linspace(0, model.cfg.n_layers - 1, SOME).round().int().tolist()
    tokens = len(pairs.base_tokens[0])
    theirs, ours = by_hooks(model, pairs, layers), exact(model, pairs, first=tokens - 1)
    assert torch.allclose(theirs, ours[0, :, layers, 0], atol=1e-2), "the same patches"
    cells = len(KINDS) * model.cfg.n_layers * tokens
    work = {
        "exact, TransformerLens hooks": lambda: by_hooks(model, pairs, layers),
        "exact, this project": lambda: exact(model, pairs),
        "attribution patching": lambda: attribution(model, pairs, KINDS, method="atp"),
        "RelP": lambda: attribution(model, pairs, KINDS, method="relp"),
        "integrated gradients, 5 steps": lambda: attribution(model, pairs, KINDS, method="ig"),
    }
    taken = {name: seconds(each) for name, each in work.items()}
    taken["exact, TransformerLens hooks"] *= cells / (len(KINDS) * len(layers))
    least = taken["attribution patching"]
    rows = [[name, f"{x:.2f}", f"{x / least:.1f}"] for name, x in taken.items()]
    text = (
        f"# All sites at once\n\n{cells:,} cells ({len(KINDS)} kinds, {model.cfg.n_layers} layers, "
        f"{tokens} tokens) of one pair, from tokens; processor time of one thread, the "
        f"faster of {ROUNDS} rounds. TransformerLens: {len(KINDS) * len(layers)} cells, "
        "extrapolated. "
        "Exact effects were compared first.\n\n"
        + markdown_table(["method", "seconds per pair", "times attribution patching"], rows)
    )
    RESULT.write_text(text.rstrip() + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
