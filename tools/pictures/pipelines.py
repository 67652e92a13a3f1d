"""Which layers of a model of `diffusers` read the text that a picture shows?

    pipe = StableDiffusionXLPipeline.from_pretrained(...)  # pip install diffusers
    pictures = localise(pipe, 'A sign that says "cat".', 'A sign that says "dog".', steps=50)
    pictures["none"], pictures["source"], pictures["all"], pictures[text_layers(pipe.unet)[55]]

The base prompt paints a picture; one layer reads the source prompt instead (Staniszewski et al.
2025, arXiv 2502.09935, who call ours base "source" and ours source "target"). Where the letters
follow the source, the layer reads them. With x the picture and c the text in that layer,

    cross-attention   K, V = W c             K, V = W c_source       c is the prompt's, fixed
    joint attention   K, V = W [x; c]        K, V = W [x; c_source]  c is in the stream of the run

Base and source stand in one batch and begin with the same noise, so the source's own run is at hand
at every step. Keys and values of text come out of two maps of the layer: there the base's row takes
those of the source's.

Covered: Stable Diffusion 1 and 2, SDXL, DeepFloyd IF, PixArt; SD3; of Flux the double blocks, for
its single ones have no maps for text alone. Tested with tiny random models of these kinds; none of
the published weights has been run here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from helpers.models import require

States: TypeAlias = Float[Tensor, "rows tokens d"]  # keys or values, all heads side by side
Picture: TypeAlias = Any  # of PIL, unless `output_type` asks for another kind
PLACES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}  # a U-Net keeps its middle last
CONDITIONAL = {-2: -1}  # of [base, source], also behind the rows of a negative prompt
SET_HERE = {"prompt", "prompt_embeds", "latents", "generator", "num_inference_steps"}
SET_HERE |= {"num_images_per_prompt", "return_dict"}


def text_layers(model: nn.Module) -> list[str]:
    """Names of the modules that read text, in the order of the run; a ValueError if none do."""
    found = [name for name, module in model.named_modules() if text_maps(module)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no cross-attention or joint attention")
    return sorted(found, key=lambda name: PLACES.get(name.split(".")[0], 1))


def text_maps(module: nn.Module) -> tuple[nn.Module, ...]:
    """The maps of an attention module to keys and values of text; none if it reads no text."""
    if getattr(module, "add_k_proj", None) is not None:  # beside `to_k`, which reads the picture
        return module.add_k_proj, module.add_v_proj
    if getattr(module, "is_cross_attention", False):
        return module.to_k, module.to_v
    return ()


@contextmanager
def injected(
    model: nn.Module, layers: Sequence[str], rows: Mapping[int, int], first_call: int = 0
) -> Iterator[None]:
    """In these layers, rows of the batch read the text of other rows.

        with injected(model, ["transformer_blocks.10.attn"], rows={0: 1}):
            model(latents, ...)  # row 0 is painted with the text of row 1 in one layer

    `rows` names the source row of each base row; negative ones count from the end. The first
    `first_call` calls are left alone. A mask of the text goes with it. Nothing stays behind.

    A ValueError for unknown layers, a row that is both base and source, or a layer that was never
    reached; an IndexError for rows that the batch does not have.
    """
    check_layers(model, layers)
    require.whole("first_call", first_call, least=0)
    modules = dict(model.named_modules())
    calls, reached = 0, set()

    def count(module: nn.Module, arguments: tuple) -> None:
        nonlocal calls
        calls += 1

    def states(module: nn.Module, arguments: tuple, output: States) -> States:
        if calls <= first_call:
            return output
        reached.add(module)
        return output[new_order(len(output), rows)]

    def mask(module: nn.Module, arguments: tuple, named: dict) -> tuple[tuple, dict] | None:
        given = named.get("attention_mask")
        if calls <= first_call or given is None or len(given) == 1:
            return None
        return arguments, named | {"attention_mask": given[new_order(len(given), rows)]}

    handles = [model.register_forward_pre_hook(count)]
    try:
        for name in layers:
            handles.append(modules[name].register_forward_pre_hook(mask, with_kwargs=True))
            handles += [one.register_forward_hook(states) for one in text_maps(modules[name])]
        yield
    finally:
        for handle in handles:
            handle.remove()
    if missed := [name for name in layers if not reached.issuperset(text_maps(modules[name]))]:
        when = f"in {calls} calls of the model, the first {first_call} left alone"
        why = "are its maps fused? model.unfuse_qkv_projections()"
        raise ValueError(f"nothing was injected into {missed[0]} {when} ({why})")


def new_order(batch: int, rows: Mapping[int, int]) -> list[int]:
    """For each row of a batch the row whose text it reads."""
    for row in (*rows, *rows.values()):
        if not -batch <= require.whole("a row", row) < batch:
            raise IndexError(f"row {row} is out of range: the model was called with {batch} rows")
    taken = {base % batch: source % batch for base, source in rows.items()}
    if both := taken.keys() & {*taken.values()}:
        raise ValueError(f"row {min(both)} is both base and source: a source must stay as it is")
    return [taken.get(row, row) for row in range(batch)]


def check_layers(model: nn.Module, layers: Sequence[str]) -> None:
    """A ValueError unless all of these are text layers of the model."""
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names, not one text: [{layers!r}]")
    known = text_layers(model)
    for name in layers:
        if name not in known:
            few = known if len(known) < 9 else [*known[:4], "...", *known[-4:]]
            raise ValueError(f"there is no text layer {name!r}; there are: {', '.join(few)}")


def edited(
    pipeline: Any, base: str, source: str, layers: Sequence[str], *, steps: int = 30,
    seed: int = 0, start: int = 0, **options: Any,
) -> tuple[Picture, Picture]:  # fmt: skip
    """The base's picture with the source's text in these layers, and the source's own picture.

    `options` go to the pipeline (`guidance_scale`, `height`, `output_type` ...). The model's first
    `start` calls are left alone: steps, if the scheduler calls it once a step. Nothing is injected
    into the rows of a negative prompt. The pipeline cuts off prompts that are too long, and warns.
    Pooled embeddings of the prompt, which SDXL and SD3 add to the time, stay the base's, whatever
    the layers. Not for pipelines that call the model once more for a negative prompt (Flux).

    A ValueError for prompts that are no texts, options that are set here, and what is no pipeline.
    """
    model = denoiser(pipeline)
    for name, prompt in {"base": base, "source": source}.items():
        if not isinstance(prompt, str):
            raise ValueError(f"{name} must be one text, not {prompt!r}")
    if refused := SET_HERE & options.keys():
        raise ValueError(f"{min(refused)} is set here: say base, source, steps and seed instead")
    require.whole("steps", steps, least=1)
    if require.whole("start", start, least=0) >= steps:
        raise ValueError(f"start must be below the number of steps, {steps}, not {start}")
    for name in options:
        if name.startswith("negative_prompt") and isinstance(options[name], str):
            options[name] = [options[name]] * 2  # some pipelines want as many as prompts
    # One generator a row, alike: the same noise for both, at every step.
    generator = [torch.Generator().manual_seed(require.whole("seed", seed, 0)) for _ in range(2)]
    with injected(model, layers, CONDITIONAL, start):
        options |= dict(prompt=[base, source], num_inference_steps=steps, generator=generator)
        found = pipeline(**options).images
    return found[0], found[1]


def denoiser(pipeline: Any) -> nn.Module:
    """The part of a pipeline that paints; a ValueError if this is no pipeline."""
    for name in ("unet", "transformer"):
        if isinstance(model := getattr(pipeline, name, None), nn.Module):
            return model
    how = "pip install diffusers, then DiffusionPipeline.from_pretrained(name) makes one"
    raise ValueError(f"{type(pipeline).__name__} is no pipeline with a unet or transformer: {how}")


def localise(
    pipeline: Any, base: str, source: str, layers: Sequence[str] | None = None, **options: Any
) -> dict[str, Picture]:
    """The base's picture with the source's text in one layer after the other (default: every one).

    Keys are "none" and "source" (the pictures of the two prompts), the names of the layers, and
    "all" (every text layer of the model, also where `layers` names a few). Each key but "source"
    takes a run of two pictures. `options` are those of `edited`, and so are the errors.
    """
    every = text_layers(denoiser(pipeline))
    layers = every if layers is None else layers
    check_layers(denoiser(pipeline), layers)
    own, other = edited(pipeline, base, source, [], **options)
    found = {"none": own, "source": other}
    for name, chosen in {**{name: [name] for name in layers}, "all": every}.items():
        found[name], _ = edited(pipeline, base, source, chosen, **options)
    return found
