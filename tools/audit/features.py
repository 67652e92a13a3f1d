"""Features of a sparse autoencoder, from its weights: `read_features("sae.safetensors", "123")`.

The file is what SAELens (`sae_weights.safetensors` beside `cfg.json`), Gemma Scope (`params.npz`)
or a plain `torch.save` of the state dict writes.
"""

import json
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tools.audit.changes import Feature
from tools.audit.vectors import DirectionFileError, as_tensor, numbers, read_file

NAMES = ("sae_weights.safetensors", "params.npz")  # in a folder
SHAPES = {  # the weights that are needed, as each convention calls them
    "encoder": ("W_enc", "encoder.weight"),
    "decoder": ("W_dec", "decoder.weight"),
}
BIASES = {"bias": ("b_enc", "encoder.bias"), "centre": ("b_dec", "decoder.bias", "pre_bias")}


def read_features(path: str | Path, row: str, clamp: float | None = None) -> dict[str, Feature]:
    """Some features of an autoencoder, by name; `clamp` sets each to this value.

    The decoder's bias is subtracted before reading where `cfg.json` says so or, without it, unless
    there are thresholds (as in Gemma Scope). Raises DirectionFileError: no such file or weights, or
    a feature whose value depends on the others (top-k).
    """
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in NAMES if (path / name).is_file()), path)
    config = _config(path)
    kind = f"{config.get('architecture', '')} {config.get('activation_fn', '')}".lower()
    if "topk" in kind.replace("-", ""):
        reason = "a feature is active only if it is among the k largest, so not by itself"
        advice = "Audit rows of its decoder: --direction FILE --key W_dec --row N"
        raise DirectionFileError(f"{path} is a top-k autoencoder: {reason}. {advice}")
    content = read_file(path)
    if not isinstance(content, dict):
        raise DirectionFileError(f"{path} holds one tensor, not an encoder and a decoder")
    encoder, decoder = _matrices(path, content)
    bias, centre, threshold = (
        None if value is None else as_tensor(path, value)
        for value in (_first(content, BIASES["bias"]), _first(content, BIASES["centre"]),
                      content.get("threshold"))
    )  # fmt: skip
    if not config.get("apply_b_dec_to_input", threshold is None):
        centre = None
    found = {}
    for number in numbers(row, len(decoder), "--row"):
        own = (0.0 if x is None else float(x[number]) for x in (bias, threshold))
        values = dict(zip(("bias", "threshold"), own, strict=True))
        feature = Feature(encoder[number], decoder[number], centre=centre, clamp=clamp, **values)
        found[f"{path.stem}[{number}]"] = feature
    return found


def _config(path: Path) -> dict[str, Any]:
    """The settings beside the weights, or none."""
    try:
        content = json.loads((path.parent / "cfg.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _matrices(path: Path, content: dict) -> tuple[Float[Tensor, "sae d"], Float[Tensor, "sae d"]]:
    """The encoder and decoder with a feature in each row."""
    found = {name: _first(content, keys) for name, keys in SHAPES.items()}
    if missing := [SHAPES[name][0] for name, value in found.items() if value is None]:
        raise DirectionFileError(
            f"{path} holds {list(content)[:20]}, but no {' and no '.join(missing)}"
        )
    encoder, decoder = (as_tensor(path, found[name]) for name in ("encoder", "decoder"))
    if encoder.ndim != 2 or decoder.ndim != 2 or encoder.shape != decoder.T.shape:
        shapes = f"{tuple(encoder.shape)} and {tuple(decoder.shape)}"
        raise DirectionFileError(f"{path}: encoder and decoder have the shapes {shapes}, "
                                 "which do not fit each other")  # fmt: skip
    # W_enc is [d, sae]; the weight of a linear layer, encoder.weight, is [sae, d].
    of_layer = "W_enc" not in content
    return (encoder, decoder.T) if of_layer else (encoder.T, decoder)


def _first(content: dict, keys: tuple[str, ...]) -> Any:
    return next((content[key] for key in keys if key in content), None)
