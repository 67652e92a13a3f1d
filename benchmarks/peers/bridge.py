"""The model as TransformerLens offers it, for the peers that work on it."""

import torch
from transformer_lens import TransformerBridge


def load_bridge(folder: str) -> TransformerBridge:
    """The raw model in float32 with frozen weights, on the CPU."""
    model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.float32)
    return model.eval().requires_grad_(False)
