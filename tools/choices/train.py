"""Train a toy to pick labels: something of known making that the command can be run on.

    python -m tools.choices.train [--out FOLDER]        about four minutes on two cores

Three layers, 64 dimensions, four heads each, a token per word. Always three answered examples, and
the loss at all four answers. First two labels, then four; what is saved then as `places` need not
read a label. Then the four in any order: `labels`. That takes luck: from its first step, or with
another draw of the orders, it learnt nothing in 600 steps.
"""

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.output import files
from tools.choices.task import multiple_choice, vocabulary

PICKERS = files.ROOT / "data" / "picker"
SHOTS, BATCH, RATE, WARM_UP, CLIP, SEED, ORDERS = 3, 32, 2e-3, 50, 1.0, 0, 40
BOS, END = "<bos>", "<|endoftext|>"
SHAPE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip


class Stage(NamedTuple):
    """So many steps on prompts with these labels, in any order if shuffled, drawn from so many."""

    labels: str
    steps: int
    pool: int
    shuffled: bool = False


RUNS = {  # each goes on from the one before, as that is saved, with a new optimizer
    "places": (Stage("AB", 700, 800), Stage("ABCD", 800, 1600)),
    "labels": (Stage("ABCD", 1000, 3200, shuffled=True),),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the task, with and without a space before it."""
    words = vocabulary()
    pieces = ["<unk>", BOS, END, *words, *(f"Ġ{word}" for word in words)]
    ids = {piece: n for n, piece in enumerate(pieces)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token=BOS, eos_token=END, pad_token=END,
        model_max_length=SHAPE["max_position_embeddings"],
    )  # fmt: skip


def texts(tokens: PreTrainedTokenizerFast, stage: Stage) -> tuple[Tensor, list[int]]:
    """Prompts with their answer, `[pool tokens]`, and where the answers stand, shots included."""
    orders, rng = [stage.labels], np.random.default_rng(SEED)
    if stage.shuffled:
        orders = [
            "".join(rng.choice(list(stage.labels), len(stage.labels), replace=False))
            for _ in range(ORDERS)
        ]
    drawn = [
        multiple_choice(
            tokens, stage.pool // len(orders), labels=order, shots=SHOTS, split="train", seed=n
        )
        for n, order in enumerate(orders, SEED)
    ]
    parts = [
        torch.cat([torch.stack(pairs.base_tokens), pairs.answer[:, None]], 1) for pairs in drawn
    ]
    whole = torch.cat(parts)
    asks = whole[:, :-1] == tokens.convert_tokens_to_ids("Answer")
    return whole, (asks[0].nonzero()[:, 0] + 2).tolist()


def untrained(tokens: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The toy before its first step."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        config = LlamaConfig(
            vocab_size=len(tokens), tie_word_embeddings=False,
            bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, **SHAPE,
        )  # fmt: skip
        return LlamaForCausalLM(config)


def train(
    model: LlamaForCausalLM, tokens: PreTrainedTokenizerFast, stages: Sequence[Stage]
) -> LlamaForCausalLM:
    """A copy after these stages, rounded to half precision; the same each time on one machine."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, betas=(0.9, 0.98))
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: min(1, (at + 1) / WARM_UP))
    generator = torch.Generator().manual_seed(SEED)
    for stage in stages:
        pool, answers = texts(tokens, stage)
        for step in range(stage.steps):
            batch = pool[torch.randint(len(pool), (BATCH,), generator=generator)]
            states = model.model(batch[:, :-1])[0][:, [at - 1 for at in answers]]
            loss = cross_entropy(model.lm_head(states).flatten(0, 1), batch[:, answers].flatten())
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            warm_up.step()
            if step % 100 == 99:
                print(stage.labels, step + 1, f"loss {loss.item():.3f}", flush=True)
    return model.half().float().eval()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser("python -m tools.choices.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=PICKERS, help="the folder for both")
    out = parser.parse_args(arguments).out
    tokens = tokenizer()
    model = untrained(tokens)
    for name, stages in RUNS.items():
        model = train(model, tokens, stages)
        copy.deepcopy(model).half().save_pretrained(out / name)
        tokens.save_pretrained(out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
