"""Text as tokens: how a prompt begins, what answer can follow it, and ordinary text.

encode(model, "Mary and John")  # with the start token, if the model reads one, and never two
answer_token(model, "Mary", "John spoke to")  # " Mary"; after "Answer: (" it would be "Mary"
passages(model, 60, length=64)  # from texts that come with the project
"""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from helpers.models import Model, require
from helpers.models.load import contiguous
from helpers.output import files

Tokenizes: TypeAlias = Model | PreTrainedTokenizerBase
OPENS = "([{<\u201c\u2018\u00ab$#@/_"  # after these a word follows without a space
ITS_SPACE = (" ", "\t")  # at the end of a prompt: the answer brings no other
TEXTS = files.ROOT / "data" / "text"  # a reference work and a novel
QUOTES = "\"'`"  # these open and close: an odd number of them in the prompt is open


def encode(model: Tokenizes, prompt: str) -> Int[Tensor, "pos"]:
    """Token ids of a text as the model reads it by default: with BOS, if it wants one.

    A text that begins with it, as chat templates write it, gets no second one. A tokenizer alone
    gets the one it has where it adds none itself, as TransformerLens does for most models.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt must be one text, not {prompt!r}")
    tokenizer = _tokenizer(model)
    start = getattr(tokenizer, "bos_token", None)
    begun = bool(start) and prompt.startswith(start)
    # One at a time: in a batch, the padding could not be told from a prompt's own tokens.
    if hasattr(model, "to_tokens"):
        wanted = False if begun else None
        return model.to_tokens(prompt, prepend_bos=wanted, truncate=False)[0].cpu()
    ids = tokenizer(prompt, add_special_tokens=not begun)["input_ids"]
    if start and ids[:1] != [tokenizer.bos_token_id]:
        ids = [tokenizer.bos_token_id, *ids]
    return torch.tensor(ids)


def single_token(model: Tokenizes, word: str) -> int:
    """The token of a word after a space; a ValueError if it is several, unknown, or no text."""
    if not isinstance(word, str):
        raise ValueError(f"an answer must be a word, not {word!r}")
    tokenizer, word = _tokenizer(model), f" {word.strip()}"
    return _only(tokenizer, word, tokenizer(word, add_special_tokens=False)["input_ids"])


def answer_token(model: Tokenizes, word: str, prompt: str, space: bool | None = None) -> int:
    """The token by which a word continues a prompt: after a space, or as it stands.

    `space` says which; by default `follows_space` does. Raises ValueError: the word is not a single
    token there, or the prompt ends in a space that the tokenizer would join to the word.
    """
    wants_space = follows_space(model, prompt) if space is None else space
    if wants_space and not prompt.endswith(ITS_SPACE):
        return single_token(model, word)
    if not isinstance(word, str):
        raise ValueError(f"an answer must be a word, not {word!r}")
    tokenizer, word = _tokenizer(model), word.strip()
    before, after = (encode(model, text).tolist() for text in (prompt, prompt + word))
    fits = after[: len(before)] == before
    if fits and len(after) == len(before) + 1:
        return _only(tokenizer, word, after[-1:])
    if prompt.endswith(ITS_SPACE) and not fits:
        reason = "the model reads a word together with the space before it: delete that space"
        raise ValueError(f"{word!r} cannot follow a prompt that ends in a space, since {reason}")
    return _only(tokenizer, word, tokenizer(word, add_special_tokens=False)["input_ids"])


def follows_space(model: Tokenizes, prompt: str) -> bool:
    """Whether a word that continues the prompt begins with a space.

    Not at its start, after white space, an opening bracket or quote, or a special token.
    """
    if not prompt or prompt[-1].isspace() or prompt[-1] in OPENS:
        return False
    if prompt[-1] in QUOTES and prompt.count(prompt[-1]) % 2:
        return False
    special = [token for token in _tokenizer(model).all_special_tokens if token]
    return not prompt.endswith(tuple(special))


def start_token(model: Model) -> int | None:
    """The token that the model's prompts begin with; None if there is none, or no tokenizer."""
    if getattr(model, "tokenizer", None) is None:
        return None
    one, other = encode(model, "A"), encode(model, "B")
    return int(one[0]) if one[0] == other[0] else None


@torch.no_grad()
def next_logits(
    model: Model, prompts: Sequence[Int[Tensor, "pos"]], batch_size: int
) -> Iterator[tuple[Int[Tensor, "rows"], Float[Tensor, "rows d_vocab"]]]:
    """Logits after prompts given as tokens, on the CPU; those of equal length share a forward pass.

    Some of the prompts at a time, by their numbers, so that few logits are held at once.
    """
    lengths = torch.tensor([len(tokens) for tokens in prompts])
    for length in lengths.unique():
        for rows in (lengths == length).nonzero()[:, 0].split(batch_size):
            batch = torch.stack([prompts[row] for row in rows]).to(model.cfg.device)
            with model.hooks(fwd_hooks=[("unembed.hook_in", contiguous)]):
                logits = model(batch, logits_to_keep=1)[:, -1].float().cpu()
            yield rows, logits


def passages(
    model: Tokenizes, n: int, *, length: int = 64, seed: int = 0
) -> Int[Tensor, "n length"]:
    """Passages of running text, equally many from each of our texts, as tokens of equal length.

    Each begins as a prompt does: with BOS if the model's tokenizer puts one. The rest are
    consecutive tokens of the text; passages do not overlap. The seed chooses them and their order.
    Raises ValueError: `length` is too short for a token of text, or the texts hold fewer passages.
    """
    require.whole("n", n)
    require.whole("length", length)
    generator = torch.Generator().manual_seed(seed)
    one, other = encode(model, "A"), encode(model, "B")  # both with BOS in front, or none
    start = one[:0] if len(one) != len(other) else one[(one == other).long().cumprod(0).bool()]
    if length <= len(start):
        raise ValueError(f"a passage of {length} tokens has no room for text")
    width, chosen, paths = length - len(start), [], sorted(TEXTS.glob("*.txt"))
    for place, path in enumerate(paths):
        wanted = len(range(place, n, len(paths)))
        paragraphs = path.read_text(encoding="utf-8").splitlines()
        tokens = encode(model, "\n".join(paragraphs))[len(start) :]
        pieces = tokens[: len(tokens) // width * width].reshape(-1, width)
        if not 1 <= n or wanted > len(pieces):
            found = f"{len(pieces)} passages of {length} tokens"
            raise ValueError(f"{path.stem} gives 1 to {found}, not {wanted}")
        chosen.append(pieces[torch.randperm(len(pieces), generator=generator)[:wanted]])
    mixed = torch.cat(chosen)[torch.randperm(n, generator=generator)]
    return torch.cat([start.expand(n, -1), mixed], dim=1)


def _tokenizer(model: Tokenizes) -> PreTrainedTokenizerBase:
    return getattr(model, "tokenizer", model)


def _only(tokenizer: PreTrainedTokenizerBase, word: str, ids: list[int]) -> int:
    """The one token of a word, or a ValueError."""
    if len(ids) != 1:
        pieces = [tokenizer.decode([token]) for token in ids]
        advice = ""
        if len(pieces) == 2 and not pieces[0].strip():  # as Llama's tokenizers split numbers
            advice = ": end the prompt with a space"
        raise ValueError(f"{word!r} must be a single token, but it splits into {pieces}{advice}")
    if ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"{word!r} must be a single token, but the tokenizer does not know it")
    return ids[0]
