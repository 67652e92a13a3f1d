"""Fine-tune the packaged model to track entities, and ask what that changed.

    python -m tools.evidence.finetuning          train and measure what is missing, then print all
    python -m tools.evidence.finetuning --print  only print what was measured

The adapters (PEFT, LoRA) go to `data/adapters/`, one folder for each, and what was measured to
`data/evidence/finetuning.json`. An interrupted run goes on with what is missing. With another model
in SUBSPACE_ILLUSION_MODEL that one is measured as it is, and nothing is trained.
"""

import time
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from helpers.models import PACKAGED, Model, load_model, model_name
from helpers.output import files
from helpers.patching import Estimate, Site, cache_sites, metrics
from helpers.tasks import single_token, tracking
from helpers.tasks.tokens import Tokenizes
from tools.evidence.store import Evidence, command
from tools.evidence.tracking import at_label
from tools.pages import markdown_table
from tools.training import NO_LOSS, load_plain, training_batch

ADAPTERS = files.ROOT / "data" / "adapters"
BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
FIRST_LAYER = 6  # layers below read words; the change is to be in what looks them up
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
RANK, SCALE, RATE, WARM_UP, BATCH, CLIP = 4, 2, 1e-3, 5, 8, 1.0
SAVED = {"seed0": (20, 60), "seed1": (20, 60), "seed2": (20, 60), "shuffled": (60,)}  # after steps

UNTOUCHED = "untouched"
LEARNT = {  # by the name of its rows, the folder of each adapter
    f"{run} step {at}": ADAPTERS / f"tracking-{run}-step{at}" for run in SAVED for at in SAVED[run]
}
MAPPED = (UNTOUCHED, *(name for name in LEARNT if name.endswith("60")))
BOXES, PROMPTS, PAIRS, SEED = (2, 3, 5, 7), 96, 96, 1
OTHERS = ("box contains", "names", "belongs to", "box first", "bare")
TABLES = {
    "published": {f"{boxes} boxes": (boxes, "boxes") for boxes in BOXES},
    "others": {wording: (3, wording) for wording in OTHERS},
}
TOKENS = ("last", "query")
UNTAUGHT = "box first"  # the wording in which a model that was not tuned may track boxes
RULES = (
    f"LoRA of rank {RANK}, scale {SCALE}, on {', '.join(TARGETS)} of layers {FIRST_LAYER} to 29; "
    f"AdamW {RATE:g}, warm-up {WARM_UP} steps, gradients clipped at {CLIP:g}, {BATCH} texts a step "
    "about 3 entities, two answers each; cross-entropy at the answers alone. Saved in half "
    "precision, and measured as saved.",
    "Shuffled: the texts of seed 0, with any of the listed objects as each answer.",
    f"Accuracy: the top token of the vocabulary is the right object; at least {PROMPTS} prompts "
    f"(seed {SEED}, split test), every place asked for equally often, so that any fixed place is "
    "right for one in so many; exact binomial intervals. Places: the share of prompts whose answer "
    "is the object at each place, right or wrong. Other formats: three boxes or people.",
    f"Four ways: {PAIRS} pairs (seed {SEED}, split test), the stream after each layer written at "
    "the last token or at the label in the query; share of pairs by what the top token is. Models "
    f"that are not ours: in the wording {UNTAUGHT!r}.",
)


# ------------------------------------------------------------------------------ training


def lora(layers: int) -> LoraConfig:
    """The adapter's shape: all four matrices of attention, from layer 6 of SmolLM2 on."""
    return LoraConfig(
        r=RANK, lora_alpha=SCALE * RANK, lora_dropout=0.0, target_modules=TARGETS,
        layers_to_transform=list(range(FIRST_LAYER, layers)), task_type="CAUSAL_LM",
    )  # fmt: skip


def fine_tune(
    model: PreTrainedModel, tokenizer: Tokenizes, run: str, folders: dict[int, Path]
) -> dict[str, list[float]]:
    """Train a new adapter on `model` and save it after some steps; loss and CPU seconds by step."""
    seed, shuffled = (0, True) if run == "shuffled" else (int(run.removeprefix("seed")), False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = get_peft_model(model, lora(model.config.num_hidden_layers))
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=RATE)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: min(1, (at + 1) / WARM_UP))
    found: dict[str, list[float]] = {"loss": [], "seconds": []}
    for step in range(max(folders)):
        start = time.process_time()
        batch = training_batch(tokenizer, BATCH, step, seed=seed, shuffled=shuffled)
        tokens, labels = (part.to(model.device) for part in batch)
        answers = (labels != NO_LOSS).any(0).nonzero()[:, 0]
        logits = adapted(tokens, logits_to_keep=answers - 1).logits  # of other tokens none is made
        loss = cross_entropy(logits.flatten(0, 1), labels[:, answers].flatten())
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(weights, CLIP)
        optimizer.step()
        warm_up.step()
        found["loss"].append(loss.item())
        found["seconds"].append(time.process_time() - start)
        print(run, step, f"{loss.item():.4f}", flush=True)
        if step + 1 in folders:
            save(adapted, folders[step + 1])
    return found


def save(adapted: PeftModel, folder: Path) -> None:
    """The adapter in half precision, as PEFT reads it, without what only this machine knows."""
    folder.mkdir(parents=True, exist_ok=True)
    config = adapted.peft_config["default"]
    config.base_model_name_or_path, config.inference_mode = BASE, True
    config.target_modules = sorted(config.target_modules)  # a set: in the same order every time
    config.save_pretrained(folder)
    tensors = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    tensors = {name: weight.half().cpu() for name, weight in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------ measuring


def accuracy(model: Model, boxes: int, wording: str) -> dict:
    """How often the right object is named, and how often that at each place."""
    n = -(-PROMPTS // boxes) * boxes
    asked = tracking.questions(model, n, boxes=boxes, wording=wording, seed=SEED)
    listed = torch.tensor([[single_token(model, word) for word in row] for row in asked["objects"]])
    named = tracking.said(model, asked["prompt"])[:, None] == listed
    right = named[torch.arange(n), torch.tensor(asked["place"].to_numpy())]
    return {"accuracy": metrics.share(right), "places": named.float().mean(0).tolist()}


@torch.no_grad()
def four_ways(model: Model, token: str, wording: str) -> dict[str, list[float]]:
    """By what is carried the share of pairs, for every layer of the stream."""
    pairs = tracking.four_way(model, PAIRS, wording=wording, split="test", seed=SEED)
    pairs = pairs if token == "last" else at_label(pairs, token)
    sites = [Site(layer, "resid_post") for layer in range(model.cfg.n_layers)]
    hits = [pairs.hits(at.patched_logits(at.source)) for at in cache_sites(model, pairs, sites)]
    return {way: [hit[way].float().mean().item() for hit in hits] for way in pairs.choices}


def measure(evidence: Evidence, name: str, table: str) -> None:
    """The rows of one model in one table; the model is loaded if any is missing."""
    kind = "four ways" if table == "four ways" else "accuracy"
    rows = TOKENS if table == "four ways" else TABLES[table]
    if missing := [row for row in rows if evidence.missing(kind, name, row)]:
        model = load_model(device="cpu", adapter=LEARNT.get(name))
        wording = "boxes" if name in MAPPED else UNTAUGHT
        for row in missing:
            mapped = kind == "four ways"
            found = four_ways(model, row, wording) if mapped else accuracy(model, *rows[row])
            evidence.put(found, kind, name, row)


def run(evidence: Evidence) -> None:
    """Everything that is missing: adapters, the published format, four ways, other formats."""
    evidence.put(list(RULES), "rules")
    if model_name() != PACKAGED:
        for table in ("published", "four ways", "others"):
            measure(evidence, Path(model_name()).name, table)
        return
    for name, steps in SAVED.items():
        if evidence.missing("training", name):
            folders = {step: LEARNT[f"{name} step {step}"] for step in steps}
            tokenizer = load_model(device="cpu").tokenizer
            found = fine_tune(load_plain(device="cpu"), tokenizer, name, folders)
            evidence.put(found, "training", name)
    for table in ("published", "four ways", "others"):
        for name in MAPPED if table == "four ways" else (UNTOUCHED, *LEARNT):
            measure(evidence, name, table)


def show(evidence: Evidence) -> None:
    """The tables, as Markdown."""
    columns = {row: of for rows in TABLES.values() for row, of in rows.items()}
    chance = ["any fixed place", *(f"{1 / boxes:.2f}" for boxes, _ in columns.values())]
    rows = [
        [name, *(f"{Estimate(*of[row]['accuracy'])}" if row in of else "" for row in columns)]
        for name, of in evidence["accuracy"].items()
    ]
    print("\n" + markdown_table(["accuracy", *columns], [*rows, chance]))
    for name, of in evidence["accuracy"].items():
        print(f"places named, {name}: {of['3 boxes']['places']}")
    for name, of in evidence["training"].items():
        print(f"{name}: loss {of['loss'][0]} to {of['loss'][-1]}, {sum(of['seconds']):.0f} seconds")
    for name, tokens in evidence.get("four ways", {}).items():
        for token, of in tokens.items():
            shares = [[f"{share:.2f}" for share in row] for row in zip(*of.values(), strict=True)]
            layers = [[str(layer), *row] for layer, row in enumerate(shares)]
            print(f"\n## {name}, {token} token\n\n" + markdown_table(["layer", *of], layers))


if __name__ == "__main__":
    command("finetuning", __doc__, run, show)
