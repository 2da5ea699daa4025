"""Anyone's weights: every format and wrapper gives the same kernel as the module itself; hostile files run nothing."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lplr_cli.analysis import Source, certify_start, open_subject, probe_checkpoint
from lplr_cli.data import DataSpec, load_dataset
from lplr_cli.errors import InputError
from lplr_cli.models import infer_mlp
from lplr_cli.ntk import Network, empirical_ntk
from lplr_cli.runs.foreign_weights import read_file
from tests.foreign_nets import TinyCNN, TinyTransformer, mlp

TABLE = Source(data=DataSpec("tests.foreign_nets:table"), activation="tanh")


def seeded(build: Any) -> Any:
    torch.manual_seed(3)
    return build().double().eval()


def kernel(module: nn.Module, x: Tensor) -> Tensor:
    return empirical_ntk(Network.from_module(module), x).matrix


def save_nested(module: nn.Module, path: Path) -> None:
    torch.save({"epoch": 3, "global_step": 70, "model": module.state_dict(), "optimizer": {"lr": 0.1}}, path)


def save_parallel(module: nn.Module, path: Path) -> None:
    torch.save({f"module._orig_mod.{k}": v for k, v in module.state_dict().items()}, path)


def save_lightning(module: nn.Module, path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Wrapper(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = module

        def training_step(self, batch: Any, index: int) -> Tensor:
            loss: Tensor = self.net(batch[0]).sum() * 0
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = lightning.Trainer(
        max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accelerator="cpu", default_root_dir=path.parent,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.zeros(2, 5, dtype=torch.float64))
    trainer.fit(Wrapper(), torch.utils.data.DataLoader(data))
    trainer.save_checkpoint(path)


SAVERS: dict[str, Callable[[nn.Module, Path], object]] = {
    "plain": lambda module, path: torch.save(module.state_dict(), path),
    "nested": save_nested,
    "parallel and compiled": save_parallel,
    "lightning": save_lightning,
    "safetensors": lambda module, path: save_file(module.state_dict(), path),
    "exported": lambda module, path: torch.export.save(
        torch.export.export(module, (torch.zeros(4, 5, dtype=torch.float64),)), path
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("saver", SAVERS)
def test_every_format_of_an_mlp(saver: str, tmp_path: Path) -> None:
    module = seeded(mlp)
    SAVERS[saver](module, tmp_path / "weights")
    source = TABLE if saver != "exported" else Source(data=TABLE.data)
    subject = open_subject(tmp_path / "weights", source)
    x = subject.dataset.tensors()[0]
    assert torch.allclose(kernel(subject.module, x), kernel(module, x), rtol=1e-12, atol=1e-14)
    assert subject.step == {"nested": 70, "lightning": 1}.get(saver)
    if saver != "exported":
        assert subject.assumptions[0].startswith("MLP 5-9-4-2 from names and shapes, tanh")
        # The structure is enough for a certificate: bounds need the layers, not the code.
        record = certify_start(tmp_path / "weights", source=source, directions=0).to_dict()
        assert record["l_j_start"] > 0
    probe = probe_checkpoint(tmp_path / "weights", source=source)
    assert probe.record["rows"] == 20
    assert probe.record["assumptions"]


@pytest.mark.parametrize(
    ("build", "name", "data"),
    [
        (TinyTransformer, "TinyTransformer", "tokens"),
        (TinyCNN, "TinyCNN", "images"),
        (lambda: TinyTransformer(width=12), "TinyTransformer", "tokens"),
    ],
)
def test_a_factory_of_the_users(build: Any, name: str, data: str, tmp_path: Path) -> None:
    module = seeded(build)
    torch.save({"state_dict": {f"net.{k}": v for k, v in module.state_dict().items()}}, tmp_path / "w.ckpt")
    arguments = {"width": 12} if name == "TinyTransformer" and module.head.in_features == 12 else {}
    source = Source(
        model=f"tests.foreign_nets:{name}", arguments=arguments, data=DataSpec(f"tests.foreign_nets:{data}")
    )
    subject = open_subject(tmp_path / "w.ckpt", source)
    x = subject.dataset.tensors()[0]
    assert torch.allclose(kernel(subject.module, x), kernel(module, x), rtol=1e-12, atol=1e-14)
    assert x.is_floating_point() == (data == "images")


def test_biases_may_be_missing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 6, bias=False), nn.Tanh(), nn.Linear(6, 2, bias=False)).double()
    torch.save(module.state_dict(), tmp_path / "w.pt")
    subject = open_subject(tmp_path / "w.pt", TABLE)
    x = subject.dataset.tensors()[0]
    assert torch.allclose(kernel(subject.module, x), kernel(module, x), rtol=1e-12)


def test_a_linear_model_needs_no_activation(tmp_path: Path) -> None:
    torch.save(nn.Linear(5, 2).state_dict(), tmp_path / "w.pt")
    subject = open_subject(tmp_path / "w.pt", Source(data=TABLE.data))
    assert "MLP 5-2 from names" in subject.assumptions[0]
    two = Source(data=DataSpec("tests.foreign_nets:table", samples=2))
    record = certify_start(tmp_path / "w.pt", source=two, directions=0).to_dict()
    assert record["unbounded"] is True


WEIGHTS = {
    "a.weight": torch.zeros(4, 5),
    "a.bias": torch.zeros(4),
    "b.weight": torch.zeros(2, 4),
    "b.bias": torch.zeros(2),
}


@pytest.mark.parametrize(
    ("changes", "source", "match"),
    [
        ({}, Source(), "training data"),
        ({}, Source(data=TABLE.data), r"MLP 5-4-2; weights do not tell the activation; pass --activation softplus"),
        ({"b.weight": torch.zeros(2, 3)}, TABLE, r"a\.weight \(4, 5\) does not lead to b\.weight \(2, 3\)"),
        ({"a.bias": torch.zeros(3)}, TABLE, "the bias of a does not fit"),
        ({"a.weight": torch.zeros(4, 7)}, TABLE, r"takes 7 inputs, the data have 5 \(shape \(5,\)\)"),
        ({"b.weight": torch.zeros(3, 4), "b.bias": torch.zeros(3)}, TABLE, "has 3 outputs, the targets of the data 2"),
        ({"conv.weight": torch.zeros(2, 1, 3, 3)}, TABLE, "does not look like the weights of an MLP"),
        ({"mask": torch.zeros(2)}, TABLE, r"MLP; .*mask \(2,\)"),
    ],
)
def test_mismatches_name_keys_and_shapes(
    changes: dict[str, Tensor], source: Source, match: str, tmp_path: Path
) -> None:
    torch.save({**WEIGHTS, **changes}, tmp_path / "w.pt")
    with pytest.raises(InputError, match=match) as caught:
        open_subject(tmp_path / "w.pt", source)
    assert "\n" not in str(caught.value)


def test_a_factory_that_does_not_fit_names_keys(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "w.pt")
    source = Source(model="tests.foreign_nets:TinyCNN", data=DataSpec("tests.foreign_nets:images"))
    with pytest.raises(InputError, match=r"lacks features\.0\.weight.*it has a\.weight \(4, 5\)"):
        open_subject(tmp_path / "w.pt", source)
    state = TinyCNN(channels=3).state_dict()
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"features\.0\.weight is \(3, 1, 3, 3\), the model's \(4, 1, 3, 3\)"):
        open_subject(tmp_path / "w.pt", source)


class Bomb:
    """Pickled, this runs a shell command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("shape", ["alone", "nested", "as a value", "plain pickle", "in a list"])
def test_hostile_pickles_run_nothing(shape: str, tmp_path: Path) -> None:
    bomb = Bomb(f"touch {tmp_path / 'ran'}")
    path = tmp_path / "w.pt"
    record: Any = {
        "alone": bomb,
        "nested": {"state_dict": {"a": {"b": bomb}}},
        "as a value": {**WEIGHTS, "c.weight": bomb},
        "plain pickle": bomb,
        "in a list": {"model": [WEIGHTS, bomb]},
    }[shape]
    if shape == "plain pickle":
        path.write_bytes(pickle.dumps(record))
    else:
        torch.save(record, path)
    with pytest.raises(InputError, match=r"unpickling|cannot read") as caught:
        open_subject(path, TABLE)
    assert not (tmp_path / "ran").exists()
    assert "\n" not in str(caught.value)


def rewrite(path: Path, target: Path, change: Any) -> None:
    """Copy an archive, letting ``change(name, content)`` alter members."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", ["function", "expression", "guard", "sample inputs", "pickled weights", "member"])
def test_hostile_programs_run_nothing(attack: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    program = torch.export.export(mlp(), (torch.zeros(4, 5),), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, tmp_path / "good.pt2")
    command = f"touch {tmp_path / 'ran'}"
    text = f"__import__('os').system('{command}')"

    def change(name: str, content: bytes) -> bytes:
        if name.endswith("models/model.json"):
            record = json.loads(content)
            if attack == "function":
                record["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"
            if attack == "guard":
                record["guards_code"] = [text]
            content = json.dumps(record).encode()
            if attack == "expression":
                content = content.replace(b"Symbol('s", text.encode() + b"+Symbol('s")
        if attack == "sample inputs" and name.endswith("sample_inputs/model.pt"):
            content = pickle.dumps(Bomb(command))
        if attack == "pickled weights" and name.endswith("weights_config.json"):
            content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
        return content

    rewrite(tmp_path / "good.pt2", tmp_path / "bad.pt2", change)
    if attack == "member":
        with zipfile.ZipFile(tmp_path / "bad.pt2", "a") as archive:
            archive.writestr("good/data/constants/custom_obj_0", pickle.dumps(Bomb(command)))
    source = Source(data=TABLE.data)
    if attack == "guard":
        open_subject(tmp_path / "bad.pt2", source)  # guards are dropped, the rest is a plain program
    else:
        with pytest.raises(InputError):
            open_subject(tmp_path / "bad.pt2", source)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("record", "match"),
    [
        ({"epoch": 3, "history": [1, 2]}, "no state dict; it has epoch, history"),
        (torch.zeros(3), "holds a Tensor"),
        ([torch.zeros(3)], "holds a list"),
        ({}, "no state dict; it has nothing"),
    ],
)
def test_files_without_weights(record: Any, match: str, tmp_path: Path) -> None:
    torch.save(record, tmp_path / "w.pt")
    with pytest.raises(InputError, match=match):
        open_subject(tmp_path / "w.pt", TABLE)


def test_a_checkpoint_of_lplr_is_not_overruled(tmp_path: Path) -> None:
    from lplr_cli.models import ModelSpec
    from lplr_cli.training import TrainConfig, train

    config = TrainConfig(DataSpec("mnist", samples=6), ModelSpec(width=3, depth=1), steps=1, probe_every=0)
    train(config, tmp_path / "r")
    with pytest.raises(InputError, match="knows its own data"):
        open_subject(tmp_path / "r", Source(data=TABLE.data))
    with pytest.raises(InputError, match="knows its own model"):
        open_subject(tmp_path / "r", Source(activation="tanh"))


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (64 << 20))
    with pytest.raises(InputError, match="unpacks to"):
        open_subject(tmp_path / "w.pt", TABLE)


def test_inference_keeps_the_order_of_definition() -> None:
    data = load_dataset(DataSpec("tests.foreign_nets:table"))
    module = nn.ModuleDict({"z": nn.Linear(5, 6), "a": nn.Linear(6, 6), "m": nn.Linear(6, 2)}).double()
    found, spec, _ = infer_mlp(module.state_dict(), (5,), 2, activation="gelu")
    assert (spec.depth, spec.width, spec.widths) == (2, 6, None)
    x = data.tensors()[0]
    by_hand = module["m"](nn.functional.gelu(module["a"](nn.functional.gelu(module["z"](x)))))
    assert torch.allclose(found(x), by_hand)


@pytest.mark.parametrize(
    "content", [b"# Notes\n", b'{"step": 0, "loss": 1.0}\n', b"step,loss\n1,2\n", b"\x89PNG\r\n\x1a\n"]
)
def test_nobody_is_told_to_unpickle_what_is_no_pickle(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_file(tmp_path / "notes")
    assert "torch.load" not in str(caught.value)
    assert "notes holds no weights; give what torch.save or safetensors wrote; a log is for fit-rate" in str(
        caught.value
    )
