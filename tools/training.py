"""Models before and while they are trained: `load_plain()`, `load_untrained()`; what is learnt.

The texts are about objects and places, as the prompts of `helpers.tasks.tracking` are, in other
words. `python -m tools.evidence.finetuning` trains on them.
"""

import contextlib
import functools
import io

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.tools.analysis import random_init_bridge
from transformers import AutoConfig, PreTrainedModel

from helpers.models import Model, require
from helpers.models.load import Device, loading, ready
from helpers.models.weights import CompleteModel
from helpers.output import files
from helpers.tasks.tokens import Tokenizes, encode
from helpers.tasks.tracking import FOLDER, context

QUERIES = 2  # of a text to fine-tune on
NO_LOSS = -100  # the label that torch and transformers leave out of a loss


def load_plain(name: str | None = None, device: Device = None) -> PreTrainedModel:
    """The model as `transformers` has it, float32 and not frozen: to be fine-tuned.

    Names and errors are those of `load_model`.
    """
    with loading(name, device) as (source, place):
        config = AutoConfig.from_pretrained(source)
        model = CompleteModel.from_pretrained(source, config=config, dtype=torch.float32)
        return model.to(place).eval()


def load_untrained(name: str | None = None, device: Device = None, *, seed: int = 0) -> Model:
    """The same architecture and tokenizer with random weights; the rest is as for `load_model`."""
    half = {"hf_config_overrides": {"dtype": torch.float32}}  # would stay in some buffers
    with contextlib.redirect_stdout(io.StringIO()), loading(name, device) as (source, place):
        return ready(random_init_bridge(source, seed=seed, device=place, **half))


def training_batch(
    model: Tokenizes, n: int, step: int, *, seed: int = 0, entities: int = 3, shuffled: bool = False
) -> tuple[Int[Tensor, "n pos"], Int[Tensor, "n pos"]]:
    """The tokens of `n` texts to fine-tune on, and the labels: only the answers count in the loss.

    A text lists objects, then asks for two of them in other words and answers. With `shuffled` the
    texts are the same, but each answer is any of the objects listed: there is nothing to track.
    Seed and step decide on everything; templates take turns, one for each step. Where texts differ
    in length, the shorter are filled up behind their end. Raises ValueError: no texts, a negative
    step or seed, or more entities than there are words for, or fewer than are asked for.
    """
    key = [require.whole("seed", seed, least=0), require.whole("step", step, least=0)]
    rng, other = np.random.default_rng(key), np.random.default_rng([*key, 1])
    words = files.shipped(FOLDER / "training_words.json")
    templates = list(files.shipped(FOLDER / "wordings.json")["training"].values())
    text, tokens, labels = templates[step % len(templates)], [], []
    lists = [words[kind].split() for kind in ("objects", text["labels"])]
    most = min(map(len, lists))
    if not QUERIES <= require.whole("entities", entities) <= most:
        raise ValueError(f"entities must be from {QUERIES} to {most}, for which there are words")
    for _ in range(require.whole("n", n, least=1)):
        objects, names = (rng.choice(listed, entities, replace=False) for listed in lists)
        asked = rng.choice(entities, QUERIES, replace=False)
        answers = other.integers(entities, size=QUERIES) if shuffled else asked
        written, places = context(text, objects, names), []
        for query, answer in zip(asked, answers, strict=True):
            written += text["query"].format(label=names[query])
            places.append(len(encode(model, written)))
            written += f" {objects[answer]}. "
        tokens.append(encode(model, written.strip()))
        labels.append(torch.full_like(tokens[-1], NO_LOSS))
        labels[-1][places] = tokens[-1][places]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    return pad(tokens), pad(labels, padding_value=NO_LOSS)
