"""How the inputs of a down projection vary over ordinary text, which an edit should not disturb.

    C = cached_second_moment(model, [12], passages(model, 128, length=64))[12]  # E[x x^T]

`b^T C b` is the mean square of what a read vector `b` senses on text that has nothing to do with
the edit; `x` are the hidden activations, uncentred.

The first token of every passage is left out. Attention uses it as a resting place, and some MLPs
give it an activation of another order of magnitude: in SmolLM2-135M its norm is 2,381 in layer 28,
where later tokens have 53, and this one token in 64 makes up 96 % of the trace of `C`. It is also
the same in every prompt, so no edit of a fact has to avoid it or could read it.
"""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformer_lens import TransformerBridge

from helpers.models import require
from helpers.models.load import model_slug
from helpers.models.smollm import cache_folder
from helpers.output import files
from helpers.patching.sites import Site, check_sites, check_vocabulary
from helpers.patching.suffix import run_to
from helpers.tasks.pairs import encode

FOLDER_NAME = "second-moments"
VERSION = 1  # raise it when what is stored changes: older files are then ignored
WIKITEXT = "Salesforce/wikitext", "wikitext-103-raw-v1"


@torch.no_grad()
def second_moment(
    model: TransformerBridge,
    layers: Sequence[int],
    tokens: Int[Tensor, "passages length"],
    *,
    skip: int = 1,
    batch_size: int = 16,
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """`E[x x^T]` over the inputs `x` of each layer's down projection, by layer.

    Layers above the highest one are not run and no logits are computed. Products of a batch are
    taken in float32 and summed in float64 on the CPU, where the float32 result stays.

    Args:
        tokens: Passages, for example from `helpers.tasks.text.passages`.
        skip: How many tokens at the start of each passage to leave out (see the module).
        batch_size: Passages per forward pass; less needs less memory.

    Raises ValueError: no layers or one the model does not have, no token left to look at, or one
    that is not in the vocabulary.
    """
    sites = _check_request(model, layers, tokens, skip, batch_size)
    total = dict.fromkeys(sites, 0.0)
    for chunk in tokens.split(batch_size):
        seen = run_to(model, chunk.to(model.cfg.device), sites)
        for site in sites:
            x = seen[site.hook_name][:, skip:].flatten(0, 1)
            total[site] = total[site] + (x.T @ x).cpu().double()
    count = tokens[:, skip:].numel()
    return {site.layer: (total[site] / count).float() for site in sites}


def regularised(second_moment: Float[Tensor, "d d"], ridge: float = 0.1) -> Float[Tensor, "d d"]:
    """`C + ridge * median(diag C) * I`: the second moment as if `x` had a little noise.

    Inverting `C` trusts its smallest eigenvalues, the ones a sample gets wrong. On SmolLM2-135M a
    ridge of 0.1 lowers what a read vector senses on *other* text, `b^T C b`: by 7 to 11 % with a
    `C` from 8,000 tokens, and to a third with 2,000. The median, not the mean: a few units with
    enormous activations should not set the scale for all.

    Raises ValueError: a ridge that is negative, NaN or infinite, or no square matrix.
    """
    require.floats("the second moment", second_moment, ndim=2)
    if len(second_moment) != len(second_moment.T):
        raise ValueError(f"a second moment is a square matrix, not {tuple(second_moment.shape)}")
    if not 0 <= ridge < float("inf"):
        raise ValueError(f"the ridge must not be negative or NaN or infinite, got {ridge}")
    diagonal = second_moment.diagonal()
    return second_moment + torch.diag(ridge * diagonal.median().expand_as(diagonal))


def whitener(second_moment: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """`L^-1` for `L L^T` the second moment of `x`: that of `L^-1 x` is the identity. In float64.

    Raises ValueError: it is not symmetric and positive definite, as far as float32 can tell.
    """
    matrix = in_double(second_moment)
    square = matrix.ndim == 2 and 0 < len(matrix) == len(matrix.T)
    if not square or not torch.allclose(matrix, matrix.mT, atol=1e-4 * matrix.abs().max()):
        raise ValueError(f"a second moment is a symmetric matrix, not {tuple(matrix.shape)}")
    cholesky, failed = torch.linalg.cholesky_ex(matrix)
    # the share of each dimension that those before it do not explain
    unexplained = cholesky.diagonal().square() / matrix.diagonal()
    if failed or not unexplained.min() > torch.finfo(torch.float32).eps:
        raise ValueError(
            "the second moment is singular: take more tokens than it has dimensions, or "
            "helpers.editing.moments.regularised"
        )
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    return torch.linalg.solve_triangular(cholesky, identity, upper=False)


def in_double(tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The same in float64 on the CPU, without gradient.

    Raises ValueError: it holds NaN or infinity, or is no floating-point tensor.
    """
    require.floats("an activation, weight or second moment", tensor)
    tensor = tensor.detach().cpu().double()
    if not torch.isfinite(tensor).all():
        raise ValueError("an activation, weight or second moment holds NaN or infinity")
    return tensor


def cached_second_moment(
    model: TransformerBridge,
    layers: Sequence[int],
    tokens: Int[Tensor, "passages length"],
    *,
    skip: int = 1,
    batch_size: int = 16,
) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """`second_moment`, kept in the user's cache folder.

    A file is found by everything that decides its content, all weights among it: an edited model
    never gets the statistics of the original. A damaged file is made again; if the folder cannot be
    written there is a warning, and the result all the same.

    Arguments and errors are those of `second_moment`.
    """
    _check_request(model, layers, tokens, skip, batch_size)
    name, key = model_slug(model.cfg.model_name), _key(model, tokens, skip)
    folder = cache_folder() / FOLDER_NAME
    paths = {layer: folder / f"{name}-layer{layer}-{key}.safetensors" for layer in layers}
    found = _load(paths)
    if missing := [layer for layer in layers if layer not in found]:
        new = second_moment(model, missing, tokens, skip=skip, batch_size=batch_size)
        _store({paths[layer]: moment for layer, moment in new.items()})
        found |= new
    return {layer: found[layer] for layer in layers}


def passages_from_wikitext(
    model: TransformerBridge, n: int, *, length: int = 64, seed: int = 0
) -> Int[Tensor, "n length"]:
    """Openings of Wikipedia paragraphs as tokens, where there is a network: `n` out of `4 n` read.

    Each begins as a prompt does: with BOS if the model's tokenizer puts one. Streamed from the
    dataset `Salesforce/wikitext`, so only its beginning is downloaded; paragraphs of fewer than
    `length` tokens are passed over.

    Raises ConnectionError: the dataset cannot be had. `helpers.tasks.text.passages` needs no
    network. ValueError: `n` below 1, or the dataset ends before `n` paragraphs are long enough.
    """
    if n < 1:
        raise ValueError(f"at least one passage is needed, not {n}")
    found: list[Tensor] = []
    for paragraph in _wikitext():
        # a token is seldom longer than eight characters: no need to encode more
        piece = encode(model, paragraph[: 8 * length])[:length]
        found += [piece] if len(piece) == length else []
        if len(found) == 4 * n:
            break
    if len(found) < n:
        raise ValueError(f"only {len(found)} paragraphs have {length} tokens or more, not {n}")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    return torch.stack(found)[order[:n]]


def fingerprint(model: TransformerBridge) -> str:
    """A hash of the model's configuration and of every weight and buffer, bit by bit."""
    digest = hashlib.blake2b(str(model.original_model.config).encode(), digest_size=16)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        values = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


def _wikitext() -> Iterator[str]:
    """The paragraphs and headings of the dataset, from its beginning."""
    try:
        from datasets import load_dataset  # here and not above: it takes a second to import

        for row in load_dataset(*WIKITEXT, split="train", streaming=True):
            yield row["text"].strip()
    except Exception as error:  # each library below has its own family of network errors
        raise ConnectionError(
            f"the dataset {WIKITEXT[0]} cannot be read: {error}. Without a network, take the texts "
            "that come with the project: helpers.tasks.text.passages"
        ) from error


def _check_request(
    model: TransformerBridge, layers: Sequence[int], tokens: Tensor, skip: int, batch_size: int
) -> list[Site]:
    """The sites of the layers, each once; errors as for `second_moment`."""
    require.whole("skip", skip, least=0)
    require.whole("batch_size", batch_size, least=1)
    sites = [Site(layer, "mlp_hidden") for layer in dict.fromkeys(layers)]
    check_sites(model, sites)
    shape = tuple(getattr(tokens, "shape", ()))
    if not layers or len(shape) != 2 or tokens[:, skip:].numel() == 0:
        raise ValueError(
            f"second moments need a layer and passages longer than {skip} tokens, got layers "
            f"{list(layers)} and tokens of shape {shape}"
        )
    check_vocabulary(model, tokens.flatten())
    return sites


def _key(model: TransformerBridge, tokens: Tensor, skip: int) -> str:
    """A hash of all that decides a second moment, but the layer."""
    settings = f"{VERSION} {fingerprint(model)} {skip} {tuple(tokens.shape)}"
    digest = hashlib.blake2b(settings.encode(), digest_size=12)
    digest.update(tokens.long().cpu().contiguous().numpy())
    return digest.hexdigest()


def _load(paths: dict[int, Path]) -> dict[int, Float[Tensor, "d_mlp d_mlp"]]:
    """What the files hold, without those that are missing or damaged."""
    found = {}
    for layer, path in paths.items():
        try:
            found[layer] = safetensors.torch.load_file(path)["second_moment"]
        except (OSError, SafetensorError, KeyError):
            continue
    return found


def _store(moments: dict[Path, Float[Tensor, "d_mlp d_mlp"]]) -> None:
    try:
        for path, moment in moments.items():
            files.write(path, safetensors.torch.save({"second_moment": moment}))
    except OSError as error:
        warnings.warn(f"second moments are not kept in {path.parent}: {error}", stacklevel=3)
