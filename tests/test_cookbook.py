"""The recipes of the cookbook run, on fewer pairs, in their order."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FEWER = {"2000": "20", " 200,": " 16,", " 100,": " 24,", " 96,": " 12,", "seeds=4": "seeds=1"}
FEWER |= {"steps=40": "steps=7"}
NEEDS_NETWORK = ("load_counterfact", "from_pretrained")
PLANTED = "score("  # half a minute; a recipe that needs nothing but the model


def recipes():
    """Their code, on fewer pairs."""
    text = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
    for recipe in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        for many, few in FEWER.items():
            recipe = recipe.replace(many, few)
        yield recipe


def test_the_recipes_run(smollm, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("helpers.models.load_model", lambda adapter=None: smollm)
    names = {}
    for recipe in recipes():
        if any(name in recipe for name in (*NEEDS_NETWORK, PLANTED)):
            compile(recipe, "recipe", "exec")
        else:
            exec(recipe, names)
    shown = capsys.readouterr().out
    assert shown.count("FLDD") >= 2 + smollm.cfg.n_layers
    assert (tmp_path / "audit" / "audit.html").exists()
    assert "a subspace of 2 dimensions - " in shown and "a steering vector, times 2 - " in shown
    assert "most direct: (2" in shown and "clipped tensor(" in shown


@pytest.mark.long
def test_the_recipe_with_planted_models_runs(smollm, capsys):
    (recipe,) = (recipe for recipe in recipes() if PLANTED in recipe)
    exec(recipe, {"model": smollm})
    shown = capsys.readouterr().out
    assert "length_nobody_sees" in shown and "far downstream" in shown
