"""Where an audit comes from: model and weights, files, pairs, tokens, command line."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from helpers.models import Model, model_name
from helpers.models.load import find_source
from helpers.tasks import Pairs

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
ABOUT = {
    "ioi": "the source has the two names in the other order, so that its right answer is the same; "
    "the counterfactual is the other name, which has there the answer's place",
    "number": "the source has a subject of the other number",
    "gender": "the source has a subject of the other gender",
    "facts": "the source has another subject of the same relation",
}
EXAMPLES = 5  # pairs whose tokens are written out


def of_run(
    model: Model, options: Any, files: Iterable[Path], pairs: Pairs, arguments: Sequence[str]
) -> dict[str, Any]:
    """What the report says of a run: plain values that JSON can hold."""
    return {
        "command": command("tools.audit", arguments),
        "model": of_model(model_name(options.model)),
        "device": str(model.cfg.device),
        "files": [{"name": path.name, "sha256": sha256(path)} for path in files],
        **of_pairs(model, options, pairs),
    }


def command(module: str, arguments: Sequence[str]) -> str:
    """The command line, without the names of this machine's folders."""
    return shlex.join(["python", "-m", module, *map(_without_folder, arguments)])


def of_pairs(model: Model, options: Any, pairs: Pairs) -> dict[str, Any]:
    """What the report says of the pairs."""
    drawn = {"split": options.split, "seed": options.seed} if options.split_matters else {}
    source = options.pairs if options.split_matters else Path(options.pairs).name
    return {
        "pairs": {"of": source, "number": len(pairs), **drawn},
        **({"about the pairs": ABOUT[source]} if source in ABOUT else {}),
        "examples": examples(model, pairs[: min(EXAMPLES, len(pairs))]),
        "prompts": prompts(pairs),
    }


def of_model(name: str) -> dict[str, str | None]:
    """The model's name, its revision on the hub and its weights' hash, where they are known."""
    folder, revision = Path(find_source(name)), None
    if not folder.is_dir():
        folder, revision = _in_cache(str(folder))
    files = sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)) if folder else []
    return {
        "name": _without_folder(name),
        "revision": revision,
        "weights sha256": sha256(*files) if files else None,
    }


def _in_cache(name: str) -> tuple[Path | None, str | None]:
    """The newest snapshot of a hub model on this machine, with its revision."""
    try:
        repos = [repo for repo in scan_cache_dir().repos if repo.repo_id == name]
    except (CacheNotFound, OSError):
        return None, None
    revisions = [revision for repo in repos for revision in repo.revisions]
    if not revisions:
        return None, None
    newest = max(revisions, key=lambda revision: revision.last_modified)
    return newest.snapshot_path, newest.commit_hash


def sha256(*paths: Path) -> str:
    """The SHA-256 of the files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def examples(model: Model, pairs: Pairs) -> list[dict[str, Any]]:
    """The pairs with their tokens as text."""
    decode = model.tokenizer.decode

    def text(ids: Iterable[int]) -> list[str]:
        return [decode([token]) for token in ids]

    columns = zip(pairs.base_tokens, pairs.source_tokens, pairs.position.tolist(),
                  pairs.source_position.tolist(), text(pairs.answer.tolist()),
                  text(pairs.counterfactual.tolist()), strict=True)  # fmt: skip
    names = ("base", "source", "position", "source_position", "answer", "counterfactual")
    rows = [(text(base.tolist()), text(source.tolist()), *rest) for base, source, *rest in columns]
    return [dict(zip(names, row, strict=True)) for row in rows]


def prompts(pairs: Pairs) -> list[dict[str, Any]]:
    """All pairs as token ids."""
    return [
        {
            "base": base.tolist(), "source": source.tolist(), "position": at,
            "source_position": read, "answer": answer, "counterfactual": other,
        }
        for base, source, at, read, answer, other in zip(
            pairs.base_tokens, pairs.source_tokens, pairs.position.tolist(),
            pairs.source_position.tolist(), pairs.answer.tolist(),
            pairs.counterfactual.tolist(), strict=True,
        )
    ]  # fmt: skip


def unused(folder: Path, names: Iterable[str]) -> Path:
    """The folder, or the next `folder-2`, `folder-3`, ... in which none of these files is."""
    names, number, free = list(names), 1, folder
    while any((free / name).exists() for name in names):
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _without_folder(argument: str) -> str:
    """A path by its last part: a report tells nobody how a machine's folders are called."""
    is_path = os.sep in argument and os.path.isabs(os.path.expanduser(argument))
    return os.path.basename(argument.rstrip(os.sep)) if is_path else argument


def to_json(content: Any) -> str:
    return json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
