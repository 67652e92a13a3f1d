"""CounterFact (Meng et al. 2022), a large set of facts and false answers, from its authors."""

import hashlib
import http.client
import json
import os
import urllib.request
import warnings
from pathlib import Path

import pandas as pd

from helpers.models.smollm import cache_folder
from helpers.output import files
from helpers.tasks.facts import SLOT

COUNTERFACT = "https://rome.baulab.info/data/dsets/counterfact.json"


def load_counterfact(
    path: str | os.PathLike | None = None, *, sha256: str | None = None
) -> pd.DataFrame:
    """The CounterFact data set (Meng et al. 2022), downloaded once into the user's cache.

    No checksum of it came with this project. So the SHA-256 of the first download is written beside
    the file and every later call compares with it: a change is noticed, a bad first copy is not,
    unless you pass `sha256`.

    Args:
        path: A copy of `counterfact.json`, for a machine without network; then nothing is fetched.
        sha256: What the SHA-256 of the file must be.

    Returns:
        The columns of a table of facts (the relation is a Wikidata property such as P103), and
        counterfactual (the false answer), paraphrases and neighbourhood (lists of prompts).

    Raises:
        ConnectionError: It cannot be downloaded; the message says what to do.
        ValueError: The file has another checksum, or is not CounterFact.
    """
    if path is not None:
        content = Path(path).expanduser().read_bytes()
        _check_sha256(content, sha256, "you expect")
        return _read_counterfact(content)
    kept = cache_folder() / "counterfact.json"
    note = kept.with_suffix(".sha256")
    content = kept.read_bytes() if kept.is_file() else _download(COUNTERFACT)
    first = note.read_text(encoding="utf-8").strip() if note.is_file() else None
    for expected, of in ((sha256, "you expect"), (first, f"{note} says")):
        digest = _check_sha256(content, expected, of)
    facts = _read_counterfact(content)  # before it is kept: the page of a login must not be
    try:
        for file, text in ((kept, content), (note, digest)):
            if not file.is_file():
                files.write(file, text)
    except OSError as error:
        warnings.warn(f"CounterFact is not kept in {kept.parent}: {error}", stacklevel=2)
    return facts


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            return response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(
            f"CounterFact cannot be downloaded from {url}: {error}. Download it on a machine with "
            "network and pass its path, load_counterfact('counterfact.json'), or use the facts of "
            "the project, load_facts(), which need no network"
        ) from error


def _check_sha256(content: bytes, expected: str | None, said_by: str) -> str:
    """The checksum of the content, which must be the expected one."""
    digest = hashlib.sha256(content).hexdigest()
    if expected is not None and digest != expected.lower():
        raise ValueError(
            f"this CounterFact is damaged or another version: its SHA-256 is {digest}, but "
            f"{said_by} {expected}"
        )
    return digest


def _read_counterfact(content: bytes) -> pd.DataFrame:
    """Its records as a table of facts."""
    try:
        rows = [_row(record) for record in json.loads(content)]
        if not rows:
            raise ValueError("no records")
        return pd.DataFrame(rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this file is not CounterFact as it was published: {error!r}") from error


def _row(record: dict) -> dict:
    rewrite = record["requested_rewrite"]
    return {
        "relation": rewrite["relation_id"],
        "subject": rewrite["subject"],
        "answer": rewrite["target_true"]["str"].strip(),
        "template": rewrite["prompt"].replace("{}", SLOT),
        "counterfactual": rewrite["target_new"]["str"].strip(),
        "paraphrases": record["paraphrase_prompts"],
        "neighbourhood": record["neighborhood_prompts"],
    }
