"""`make gpu-check`, rehearsed: CPU against CPU on a tiny model, and what it says without a GPU."""

import subprocess

import pytest
import torch
from tiny_folders import make_folder

from benchmarks import gpu


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "no GPU" in shown.err


@pytest.mark.long
def test_the_rehearsal_runs_and_a_difference_is_seen(tmp_path, monkeypatch, capsys):
    folder = str(make_folder("llama", tmp_path / "tiny"))
    options = ["--device", "cpu", "--model", folder, "--out", str(tmp_path)]
    assert gpu.main([*options, "--lesson", "00"]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert "Lessons 00 with the sizes `small` ran to their ends" in text
    assert text.count("| yes |") == 6 and "an audit of one direction" in text
    load = gpu.load_model
    calls = []

    def another(name, device):
        calls.append(device)
        model = load(name, device)
        if len(calls) == 2:  # the second device
            with torch.no_grad():
                model.blocks[-1].mlp.W_out.mul_(1.01)
        return model

    monkeypatch.setattr(gpu, "load_model", another)
    monkeypatch.setattr(gpu, "timed", lambda *_: {})
    assert gpu.main([*options, "--lesson"]) == 1
    assert "| NO |" in (tmp_path / "gpu.md").read_text()


def test_a_lesson_that_fails_is_said(monkeypatch, tmp_path):
    class Failed(subprocess.Popen):
        def __init__(self, command, **settings):
            super().__init__(["sh", "-c", "echo stopped; exit 1"], **settings)

    monkeypatch.setattr(gpu.subprocess, "Popen", Failed)
    ok, _, said = gpu.lessons(None, "cpu", ["00"])
    assert (ok, said) == (False, "stopped")


def test_differences_are_relative_to_large_values_only():
    here = {"small": torch.tensor([0.1, 0.2]), "large": torch.tensor([0.0, 100.0])}
    here = {name: value.double() for name, value in here.items()}
    there = {name: value + 0.05 for name, value in here.items()}
    (_, first, one), (_, second, other) = gpu.compare(here, there)
    assert first == pytest.approx(0.05) and not one
    assert second == pytest.approx(0.0005) and other
