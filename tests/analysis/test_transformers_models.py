"""Models of transformers: tied weights, records of logits, folders; and the advice for a saved module."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lplr_cli.analysis import Source, open_subject, probe_checkpoint
from lplr_cli.cli.main import run
from lplr_cli.data import DataSpec

transformers = pytest.importorskip("transformers")


def classifier() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, num_labels=3, pad_token_id=0,
        attn_implementation="eager", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config)


def language_model() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def residual_net() -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(1, 11, (5, 6)), torch.eye(3)[torch.arange(5) % 3]


def next_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    words = tokens()[0]
    return words, torch.nn.functional.one_hot(words.roll(-1, 1), 11).reshape(5, -1).double()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return torch.randn(4, 1, 16, 16), torch.eye(3)[torch.arange(4) % 3]


def here(name: str) -> str:
    return f"{__name__}:{name}"


@pytest.mark.parametrize(
    ("model", "data"), [("classifier", "tokens"), ("language_model", "next_tokens"), ("residual_net", "images")]
)
def test_a_folder_of_hugging_face_is_a_checkpoint(model: str, data: str, tmp_path: Path) -> None:
    made = globals()[model]()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    made.save_pretrained(tmp_path / "out" / "checkpoint-7")
    subject = open_subject(tmp_path / "out", Source(model=here(model), data=DataSpec(here(data))))
    assert subject.path.name == "model.safetensors"
    assert subject.assumptions[0].endswith(", its logits")
    inputs = globals()[data]()[0]
    with torch.no_grad():
        inputs = inputs.double() if inputs.is_floating_point() else inputs
        torch.testing.assert_close(subject.module(inputs), made.double().eval()(inputs).logits)


def test_the_kernel_of_a_language_model_is_that_of_its_jacobian(tmp_path: Path) -> None:
    made = language_model()
    made.save_pretrained(tmp_path / "out")
    probe = probe_checkpoint(
        tmp_path / "out", source=Source(model=here("language_model"), data=DataSpec(here("next_tokens"))), size=2
    )
    made = made.double().eval()
    rows = []
    for value in made(next_tokens()[0][:2]).logits.reshape(-1):
        gradients = torch.autograd.grad(value, list(made.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    kernel = torch.stack(rows) @ torch.stack(rows).T / 2
    expected = torch.linalg.eigvalsh(kernel).numpy()
    np.testing.assert_allclose(probe.eigenvalues, expected, atol=1e-10 * expected[-1])


def test_weights_in_several_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    assert run(["probe-ntk", str(tmp_path), "--data", "mnist"]) == 2
    assert "holds its weights in several files" in capsys.readouterr().err


def test_the_advice_for_a_saved_module_works_when_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 1)), tmp_path / "whole.pt")
    assert run(["probe-ntk", str(tmp_path / "whole.pt"), "--data", "mnist"]) == 2
    advice = re.search(r'python -c "(.*)"', capsys.readouterr().err)
    assert advice is not None
    subprocess.run([sys.executable, "-c", advice[1]], cwd=tmp_path, check=True)
    assert sorted(torch.load(tmp_path / "weights.pt", weights_only=True)) == ["0.bias", "0.weight"]
