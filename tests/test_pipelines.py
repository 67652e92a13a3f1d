"""Text of one prompt in a layer of another's run, against hooks by hand and whole passes."""

from contextlib import contextmanager

import pytest
import torch

pytest.importorskip("diffusers", reason="the extra `pictures` is not installed")

from diffusers import (  # noqa: E402
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (  # noqa: E402
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from tools.pictures.pipelines import denoiser, edited, injected, localise, text_layers, text_maps  # noqa: E402  # noqa: E402

TOKENS, WIDTH = 7, 12
CROSS, JOINT = ("unet", "deepfloyd", "pixart"), ("sd3", "flux")


def tiny(kind, **changes):
    """A random model whose every weight counts, in float64."""
    torch.manual_seed(0)
    unet = dict(sample_size=8, in_channels=4, out_channels=4, layers_per_block=1)
    unet |= dict(block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=WIDTH)
    blocks = dict(attention_head_dim=8, num_attention_heads=2, num_layers=3, in_channels=4)
    if kind == "unet":
        unet |= dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
        unet |= dict(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=4)
        model = UNet2DConditionModel(**unet | changes)
    elif kind == "deepfloyd":  # text and picture in one attention, which has maps for both
        unet |= dict(down_block_types=("SimpleCrossAttnDownBlock2D",) * 2, attention_head_dim=4)
        unet |= dict(up_block_types=("SimpleCrossAttnUpBlock2D",) * 2)
        unet |= dict(mid_block_type="UNetMidBlock2DSimpleCrossAttn")
        model = UNet2DConditionModel(**unet)
    elif kind == "pixart":
        blocks |= dict(sample_size=8, out_channels=4, cross_attention_dim=16)
        model = PixArtTransformer2DModel(
            **blocks, caption_channels=WIDTH, use_additional_conditions=False
        )
    elif kind == "sd3":
        blocks |= dict(sample_size=8, out_channels=4, joint_attention_dim=WIDTH)
        blocks |= dict(dual_attention_layers=(1,), qk_norm="rms_norm")
        blocks |= dict(caption_projection_dim=16, pooled_projection_dim=5)
        model = SD3Transformer2DModel(**blocks | changes)
    else:
        blocks |= dict(num_single_layers=2, joint_attention_dim=WIDTH, axes_dims_rope=(2, 2, 4))
        model = FluxTransformer2DModel(**blocks, pooled_projection_dim=5)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.fixture(scope="module", params=(*CROSS, *JOINT))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return tiny(kind)


@pytest.fixture(scope="module")
def unet():
    return tiny("unet")


def text(rows, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, TOKENS, WIDTH, generator=generator, dtype=torch.double)


@torch.no_grad()
def run(model, words, time=500, **more):
    """One call: the same noise in each row, which reads its own text."""
    n, generator = len(words), torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 8, 8, generator=generator, dtype=torch.double).expand(n, -1, -1, -1)
    pooled, time = torch.ones(n, 5, dtype=torch.double), torch.full((n,), float(time))
    if isinstance(model, UNet2DConditionModel):
        return model(noise, time, words, **more).sample
    if isinstance(model, PixArtTransformer2DModel):
        return model(noise, words, time, added_cond_kwargs={}, **more).sample
    if isinstance(model, SD3Transformer2DModel):
        return model(noise, words, pooled, time, **more).sample
    ids = dict(txt_ids=torch.zeros(TOKENS, 3), img_ids=torch.cartesian_prod(*map(
        torch.arange, (1, 8, 8))).double())  # fmt: skip
    return model(noise.flatten(2).mT, words, pooled, time / 1000, **ids).sample


@contextmanager
def written(model, layers, kept):
    """By hand: puts what was recorded at these layers into a run, or records it if `kept` is new.

    In cross-attention the text that a module is given; in joint attention what `add_k_proj` and
    `add_v_proj` say.
    """
    handles, recording = [], not kept

    def given(name):
        def hook(module, arguments, named):
            if recording:
                kept[name] = named["encoder_hidden_states"]
            return arguments, named | {"encoder_hidden_states": kept[name]}

        return hook

    def said(name):
        def hook(module, arguments, output):
            if recording:
                kept[name] = output
            return kept[name]

        return hook

    for name in layers:
        module = model.get_submodule(name)
        if isinstance(model, (SD3Transformer2DModel, FluxTransformer2DModel)):
            for one in ("add_k_proj", "add_v_proj"):
                handles.append(getattr(module, one).register_forward_hook(said(f"{name}.{one}")))
        else:
            handles.append(module.register_forward_pre_hook(given(name), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def close(found, right):
    return torch.allclose(found, right, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------- one call of a model


def test_text_layers_are_those_that_are_given_text_in_the_order_of_the_run(kind, model):
    calls, handles = [], []
    for name, module in model.named_modules():
        if hasattr(module, "to_q"):

            def note(module, arguments, named, name=name):
                if named.get("encoder_hidden_states") is not None:
                    calls.append(name)

            handles.append(module.register_forward_pre_hook(note, with_kwargs=True))
    run(model, text(1))
    for handle in handles:
        handle.remove()
    assert text_layers(model) == calls
    assert len(calls) == {"unet": 4, "deepfloyd": 7, "pixart": 3, "sd3": 3, "flux": 3}[kind]


def test_each_layer_equals_what_hooks_do_by_hand(model):
    words, kept = text(2), {}
    own = run(model, words)
    every = text_layers(model)
    with written(model, every, kept):
        run(model, words[1:])
    for layers in ([name] for name in every):
        with written(model, layers, kept):
            right = run(model, words[:1])
        with injected(model, layers, {0: 1}):
            found = run(model, words)
        assert close(found[:1], right)
        assert not close(found[:1], own[:1]), "or the test shows nothing"
        assert torch.equal(found[1], own[1]), "the source runs as it is"
    assert hooks(model) == 0


def test_several_layers_and_only_the_rows_that_are_named(model):
    words, kept, every = text(4), {}, text_layers(model)
    layers, own = [every[0], every[-1]], run(model, words)
    with written(model, every, kept):
        run(model, words[3:])
    with written(model, layers, kept):
        right = run(model, words[2:3])
    for rows in ({2: 3}, {-2: -1}):
        with injected(model, layers, rows):
            found = run(model, words)
        assert close(found[2:3], right)
        assert torch.equal(found[[0, 1, 3]], own[[0, 1, 3]])


def test_ones_own_text_and_no_layer_change_nothing(model):
    words = text(1).expand(2, -1, -1).clone()
    own = run(model, words)
    with injected(model, text_layers(model), {0: 1}):
        assert close(run(model, words), own)
    with injected(model, [], {0: 1}):
        assert torch.equal(run(model, words), own)


def test_all_layers_are_the_source_where_text_is_fixed(kind, model):
    words = text(2)
    with injected(model, text_layers(model), {0: 1}):
        found = run(model, words)
    assert close(found[0], found[1]) == (kind in CROSS or kind == "sd3")
    # Nothing else of SD3's text reaches the picture; Flux has single blocks, which read it as well.


@pytest.mark.parametrize("which", ["unet", "pixart"])
def test_the_mask_of_the_text_goes_with_it(which):
    model, words = tiny(which), text(2)
    mask = torch.ones(2, TOKENS, dtype=torch.double)
    mask[0, 3:] = mask[1, 5:] = 0
    own = run(model, words, encoder_attention_mask=mask)
    assert not close(own, run(model, words))
    with injected(model, text_layers(model), {0: 1}):
        found = run(model, words, encoder_attention_mask=mask)
    assert close(found[0], own[1]) and torch.equal(found[1], own[1])


def test_the_first_calls_are_left_alone(unet):
    words, layers = text(2), text_layers(unet)
    own = run(unet, words)
    with injected(unet, layers, {0: 1}, first_call=2):
        found = [run(unet, words) for _ in range(4)]
    assert all(torch.equal(one, own) for one in found[:2])
    assert all(close(one[0], own[1]) for one in found[2:])


def test_gradients_reach_the_source_text(unet):
    words = text(2).requires_grad_()
    with injected(unet, text_layers(unet), {0: 1}):
        noise = torch.zeros(2, 4, 8, 8, dtype=torch.double)
        unet(noise, 5, words).sample[0].square().sum().backward()
    assert (words.grad[0] == 0).all() and (words.grad[1] != 0).any()
    unet.zero_grad()


def test_nothing_is_left_after_an_exception(model):
    words = text(2)
    own = run(model, words)
    with pytest.raises(KeyboardInterrupt), injected(model, text_layers(model), {0: 1}):
        run(model, words)
        raise KeyboardInterrupt
    with pytest.raises(IndexError), injected(model, text_layers(model), {0: 2}):
        run(model, words)
    assert hooks(model) == 0 and torch.equal(run(model, words), own)


def test_fused_maps_are_noticed():
    model = tiny("unet")
    model.fuse_qkv_projections()
    with pytest.raises(ValueError, match="nothing was injected .*unfuse_qkv"):
        with injected(model, text_layers(model), {0: 1}):
            run(model, text(2))


# ------------------------------------------------------------------------------ whole pipelines

WORDS = ["a", "sign", "says", "cat", "dog", "red"]
BASE, SOURCE = "a red sign says cat", "a sign says dog"


def pipeline(kind):
    """Tiny and random: a tokenizer of six words, a text encoder, a painter and a decoder."""
    pieces, merges = {}, []
    for word in WORDS:  # merged from its letters, one after the other
        *parts, last = word
        parts.append(last + "</w>")
        pieces |= dict.fromkeys(parts)
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
            pieces[parts[0]] = None
    vocab = {piece: n for n, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=8)
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=WIDTH, intermediate_size=16, projection_dim=WIDTH,
        num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=8,
        bos_token_id=len(vocab) - 2, eos_token_id=len(vocab) - 1,
    )  # fmt: skip
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=16)
    vae.config.shift_factor = 0.0
    parts = dict(
        vae=vae, tokenizer=tokenizer, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1)
    )
    if kind == "sd":
        parts |= dict(text_encoder=CLIPTextModel(config).eval(), unet=tiny("unet"))
        parts |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        found = StableDiffusionPipeline(**parts)
    else:  # two text encoders, whose pooled embeddings are added to the time
        encoders = [CLIPTextModelWithProjection(config).eval() for _ in range(2)]
        parts |= dict(text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer_2=tokenizer)
    if kind == "sdxl":
        sizes = dict(cross_attention_dim=2 * WIDTH, addition_embed_type="text_time")
        sizes |= dict(addition_time_embed_dim=4, projection_class_embeddings_input_dim=WIDTH + 24)
        found = StableDiffusionXLPipeline(
            **parts, unet=tiny("unet", **sizes), add_watermarker=False
        )
    if kind == "sd3":
        sizes = dict(joint_attention_dim=2 * WIDTH, pooled_projection_dim=2 * WIDTH)
        parts |= dict(transformer=tiny("sd3", **sizes), text_encoder_3=None, tokenizer_3=None)
        found = StableDiffusion3Pipeline(
            **parts | dict(scheduler=FlowMatchEulerDiscreteScheduler())
        )
    found.set_progress_bar_config(disable=True)
    return found.to(torch.double)


@pytest.fixture(scope="module", params=["sd", "sdxl", "sd3"])
def painter(request):
    return pipeline(request.param)


OPTIONS = dict(steps=3, seed=5, height=8, width=8, output_type="latent")


def alone(painter, prompt, **changes):
    """The picture of one prompt by the pipeline itself."""
    options = OPTIONS | changes
    steps, seed = options.pop("steps"), options.pop("seed")
    generator = torch.Generator().manual_seed(seed)
    found = painter(prompt=prompt, num_inference_steps=steps, generator=generator, **options)
    return found.images[0]


def alike(found, right):
    return torch.allclose(found, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_the_pictures_of_a_pipeline(painter, guidance_scale):
    guided = dict(guidance_scale=guidance_scale)
    found = localise(painter, BASE, SOURCE, **OPTIONS, **guided)
    layers = text_layers(denoiser(painter))
    assert list(found) == ["none", "source", *layers, "all"]
    assert alike(found["none"], alone(painter, BASE, **guided))
    assert alike(found["source"], alone(painter, SOURCE, **guided))
    pooled = not isinstance(painter, StableDiffusionPipeline)  # the base's stay
    assert alike(found["all"], found["source"]) == (not pooled)
    pictures = [found[name] for name in ("none", "source", *layers)]
    assert not any(alike(a, b) for k, a in enumerate(pictures) for b in pictures[:k])
    assert hooks(denoiser(painter)) == 0


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("start", [0, 2])
def test_a_picture_equals_one_painted_by_hand(painter, guidance_scale, start):
    """The source alone, recorded at each step; then the base alone, with what was recorded."""
    model, guided = denoiser(painter), dict(guidance_scale=guidance_scale)
    name = text_layers(model)[1]
    records, step, mode = [], 0, "record"

    def said(key):
        def hook(module, arguments, output):
            if mode == "record":
                records[-1][key] = output[-1:]
            elif step > start:
                return torch.cat([output[:-1], records[step - 1][key]])  # only the prompt's half

        return hook

    def count(module, arguments):
        nonlocal step
        step += 1
        if mode == "record":
            records.append({})

    handles = [model.register_forward_pre_hook(count)]
    for key, one in enumerate(text_maps(model.get_submodule(name))):
        handles.append(one.register_forward_hook(said(key)))
    alone(painter, SOURCE, **guided)
    step, mode = 0, "write"
    right = alone(painter, BASE, **guided)
    for handle in handles:
        handle.remove()
    found, _ = edited(painter, BASE, SOURCE, [name], start=start, **OPTIONS, **guided)
    assert alike(found, right) and not alike(found, alone(painter, BASE, **guided))


def test_pictures_seeds_and_negative_prompts(painter):
    options = dict(steps=2, height=8, width=8)
    found = localise(painter, BASE, SOURCE, text_layers(denoiser(painter))[:1], **options)
    assert len(found) == 4 and all(picture.size == (8, 8) for picture in found.values())
    options = OPTIONS | dict(guidance_scale=5.0)
    none, _ = edited(painter, BASE, SOURCE, [], **options)
    without = dict(negative_prompt="red", guidance_scale=5.0)
    refused, refused_source = edited(painter, BASE, SOURCE, [], **OPTIONS | without)
    assert alike(refused, alone(painter, BASE, **without))
    assert alike(refused_source, alone(painter, SOURCE, **without))
    other, _ = edited(painter, BASE, SOURCE, [], **options | dict(seed=6))
    assert not alike(none, refused) and not alike(none, other)


def test_a_pipeline_that_fails_leaves_nothing(painter):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        localise(painter, BASE, SOURCE, callback_on_step_end=interrupt, **OPTIONS)
    assert hooks(denoiser(painter)) == 0
