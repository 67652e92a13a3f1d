"""Train a sparse autoencoder on the stream of the packaged model, and ship it.

    python -m tools.evidence.dictionary

Writes `data/sparse/<model>.safetensors` (3.5 megabytes; about twenty minutes on one core). The
activations are kept in the results folder, so a second run only trains. Recipe: BatchTopK (arXiv
2412.06410) in training, its mean threshold ever after, so that a feature is itself by itself:

    value = pre (pre > threshold),  pre = stream @ W_enc + b_enc,  stream ~ value @ W_dec + b_dec
"""

import itertools

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from helpers.claims import report
from helpers.models import Model, load_model
from helpers.output import files
from helpers.patching import Site, recording
from helpers.patching.suffix import only_columns
from helpers.tasks import agreement, passages
from helpers.tasks.pairs import words_of_split
from helpers.tasks.tokens import encode

SITE = Site(16, "resid_post")  # in the middle: the number stands at the noun up to layer 25
FEATURES, ACTIVE = 1536, 24  # of them active at a token, on average
PASSAGES, HELD_OUT, SENTENCES = 900, 40, 2400  # of 64 tokens; the first are kept to test with
STEPS, BATCH, RATE, SEED = 1200, 512, 2e-3, 0
IDLE, REVIVED = 100, 64  # steps without a token that make a feature dead; how many are helped
OPENINGS = (
    "", "", "Yesterday ", "In the morning ", "I think that ", "We know that ", "She said that ",
    "At night ", "Of course ", "For many years ", "Everyone said that ", "After the war ",
)  # fmt: skip
BEFORE = {  # what stands before a noun
    "singular": "the the the this that my our their his her every one each".split(),
    "plural": "the the the these those my our their his her many some two".split(),
}
BEHIND = (
    "", "", " of {}", " near {}", " with {}", " behind {}", " for {}", " that {} liked",
    " who knew {}", " in our town", " that we found", " they had", " on the left",
)  # fmt: skip
VERBS = {"singular": "is has does goes was", "plural": "are have do go were"}
ENDS = " very old", " not here", " no longer the same", " always been there", " too much", ""
Weights = dict[str, Tensor]  # W_enc [d features], b_enc, threshold, W_dec [features d], b_dec


def shipped_file(name: str = "smollm2-135m") -> str:
    """Where the autoencoder of this model is kept."""
    return str(files.ROOT / "data" / "sparse" / f"{name}.safetensors")


def values(weights: Weights, stream: Float[Tensor, "... d"]) -> Float[Tensor, "... features"]:
    """How active every feature is."""
    before = stream @ weights["W_enc"] + weights["b_enc"]
    return before * (before > weights["threshold"])


def rebuilt(weights: Weights, active: Float[Tensor, "... features"]) -> Float[Tensor, "... d"]:
    """The stream that these values stand for."""
    return active @ weights["W_dec"] + weights["b_dec"]


def load() -> Weights:
    """The shipped weights, as float32."""
    return {name: x.float() for name, x in load_file(shipped_file()).items()}


def sentences(model: Model, n: int) -> list[str]:
    """Sentences about the train nouns, some of whose verbs must look past another noun."""
    table = [line.split(",") for line in (agreement.FOLDER / "nouns.csv").read_text().split()]
    words = words_of_split(model, [tuple(row) for row in table[1:]], "nouns", "train")
    generator = torch.Generator().manual_seed(SEED)

    def choose(things: list | tuple) -> str:
        return things[int(torch.randint(len(things), (), generator=generator))]

    def noun(number: str) -> str:
        return f"{choose(BEFORE[number])} {choose(words)[number == 'plural']}"

    found = []
    for _ in range(n):
        number, other = choose(list(VERBS)), choose(list(VERBS))
        rest = choose(BEHIND).format(noun(other))
        verb = choose(VERBS[number].split())
        text = f"{choose(OPENINGS)}{noun(number)}{rest} {verb}{choose(ENDS)}."
        found.append(text[0].upper() + text[1:])
    return found


@torch.no_grad()
def streams(model: Model, tokens: Int[Tensor, "n length"]) -> Float[Tensor, "tokens d"]:
    """The stream at the site, of every token but the first, which is like no other."""
    found = []
    for rows in tokens.split(max(1, 1024 // tokens.shape[1])):
        with recording(model, {SITE.hook_name}) as seen, only_columns(model, [0]):
            model(rows, stop_at_layer=SITE.layer + 1)
        found.append(seen[SITE.hook_name][:, 1:].flatten(0, 1))
    return torch.cat(found)


def training_streams(model: Model) -> Float[Tensor, "tokens d"]:
    """Of running text and of sentences; kept in the results folder."""
    path = report.results_folder() / "dictionary.safetensors"
    if not path.exists():
        parts = [streams(model, passages(model, PASSAGES)[HELD_OUT:])]
        own = sorted((encode(model, text) for text in sentences(model, SENTENCES)), key=len)
        for _, group in itertools.groupby(own, key=len):
            parts.append(streams(model, torch.stack(list(group))))
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"streams": torch.cat(parts)}, path)
    return load_file(path)["streams"]


def train(data: Float[Tensor, "tokens d"]) -> Weights:
    """An autoencoder of these streams."""
    generator, (n, d) = torch.Generator().manual_seed(SEED), data.shape
    centre = data.mean(0)
    scale = (data - centre).square().mean().sqrt()
    data = (data - centre) / scale
    start = torch.randn(FEATURES, d, generator=generator)
    start = start / start.norm(dim=1, keepdim=True)
    parts = [start.T.clone(), torch.zeros(FEATURES), start, torch.zeros(d)]
    W_enc, b_enc, W_dec, b_dec = (x.contiguous().requires_grad_() for x in parts)
    optimizer = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=RATE)
    slower = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, step / 100, (STEPS - step) / (0.3 * STEPS))
    )
    idle, threshold = torch.zeros(FEATURES), torch.tensor(0.0)
    for step in range(STEPS):
        x = data[torch.randint(n, (BATCH,), generator=generator)]
        before = ((x - b_dec) @ W_enc + b_enc).relu()
        least = before.flatten().topk(BATCH * ACTIVE).values[-1]
        active = before * (before >= least)
        error = x - active @ W_dec - b_dec
        loss = error.square().mean()
        idle = torch.where((active > 0).any(0), 0.0, idle + 1)
        if (dead := (idle > IDLE).nonzero()[:, 0]).numel():  # they learn what the others leave
            best = before[:, dead].topk(min(REVIVED, len(dead)), dim=1)
            helped = torch.zeros(BATCH, len(dead)).scatter(1, best.indices, best.values)
            loss = loss + (error.detach() - helped @ W_dec[dead]).square().mean() / 32
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)
            threshold = threshold.lerp(least.detach(), 0.01 if step > 100 else 0.1)
        if step % 250 == 0 or step == STEPS - 1:
            left = (error.square().sum() / (x - x.mean(0)).square().sum()).item()
            print(f"{step:5} unexplained {left:.3f}, dead {len(dead)}", flush=True)
    with torch.no_grad():  # in the model's own units, the centre inside the bias
        return {
            "W_enc": W_enc.detach(),
            "b_enc": scale * b_enc - (scale * b_dec + centre) @ W_enc,
            "threshold": (scale * threshold).expand(FEATURES).contiguous(),
            "W_dec": W_dec.detach(),
            "b_dec": scale * b_dec + centre,
        }


def main() -> None:
    data = training_streams(load_model(device="cpu"))
    weights = train(data)
    save_file({name: x.half().contiguous() for name, x in weights.items()}, shipped_file())
    print(f"{shipped_file()}: from {len(data):,} tokens")


if __name__ == "__main__":
    main()
