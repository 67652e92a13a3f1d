"""CounterFact (Meng et al. 2022), a large set of facts: `load_counterfact("counterfact.json")`."""

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


def load_counterfact(path: str | os.PathLike | None = None) -> pd.DataFrame:
    """The CounterFact data set, downloaded once into the user's cache, or read from a file.

    A file may also be `known_1000.json` of causal tracing, or CounterFact as EasyEdit has it. What
    they lack is empty; without a relation the template stands for it.

    Returns the columns of a table of facts (the relation is a Wikidata property such as P103), and
    counterfactual (the false answer), paraphrases and neighbourhood (lists of prompts). Raises
    ConnectionError: it cannot be downloaded. ValueError: the file is in none of these forms.
    """
    kept = Path(path).expanduser() if path is not None else cache_folder() / "counterfact.json"
    if path is not None or kept.is_file():
        return _read_counterfact(kept.read_bytes())
    content = _download(COUNTERFACT)
    facts = _read_counterfact(content)  # before it is kept: the page of a login must not be
    try:
        files.write(kept, content)
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


def _read_counterfact(content: bytes) -> pd.DataFrame:
    """Its records as a table of facts."""
    try:
        rows = [_row(record) for record in json.loads(content)]
        if not rows:
            raise ValueError("no records")
        return pd.DataFrame(rows)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this file has none of the forms of CounterFact: {error!r}") from error


def _row(record: dict) -> dict:
    """A record of CounterFact as a row."""
    if "requested_rewrite" not in record:
        return _flat_row(record)
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


def _flat_row(record: dict) -> dict:
    """A record of known_1000.json, or of EasyEdit; its prompt counts, which its template may cut.

    Facts without a relation are of one relation if they are of one template.
    """
    if (subject := record["subject"]) not in record["prompt"]:
        raise ValueError(f"the prompt {record['prompt']!r} does not name its subject {subject!r}")
    template = record["prompt"].replace(subject, SLOT, 1)  # named again, it is part of the text
    answer = record["attribute"] if "attribute" in record else record["ground_truth"]
    return {
        "relation": record.get("relation_id", template),
        "subject": subject,
        "answer": answer.strip(),
        "template": template.strip(),
        "counterfactual": record.get("target_new", "").strip(),
        "paraphrases": [record["rephrase_prompt"]] if "rephrase_prompt" in record else [],
        "neighbourhood": [record["locality_prompt"]] if "locality_prompt" in record else [],
    }
