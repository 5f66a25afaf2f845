import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from services.runtime.weights import WeightsError, load_weights, read_config, save_weights
from superlink.configuration import Section


class Sizes(Section):
    width: int


class TiedModel(nn.Module):
    """An embedding whose table is the output layer's as well, as language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.output = nn.Linear(width, 10, bias=False)
        self.output.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(width)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_weights(TiedModel(4), tmp_path / "weights", Sizes(width=4))
    return tmp_path / "weights"


def test_round_trip_with_tied_parameters_and_buffers(tmp_path: Path) -> None:
    model = TiedModel(4)
    model.norm.running_mean.fill_(3)
    save_weights(model, tmp_path, Sizes(width=4))
    loaded = TiedModel(read_config(tmp_path, Sizes).width)
    load_weights(loaded, tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert loaded.output.weight is loaded.embedding.weight
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_missing_folder_and_files_say_how_to_get_them(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(WeightsError, match="no such folder.*superlink train.*superlink doctor"):
        read_config(tmp_path / "nowhere", Sizes)
    with pytest.raises(WeightsError, match="no such folder"):
        load_weights(TiedModel(4), tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="model.safetensors: there is no such file"):
        load_weights(TiedModel(4), folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match="config.json: there is no such file"):
        read_config(folder, Sizes)


def test_wrong_config_names_the_key(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"widht": 4}))
    with pytest.raises(WeightsError, match="width: Field required; widht: Extra inputs"):
        read_config(folder, Sizes)
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        read_config(folder, Sizes)


def test_weights_of_another_model_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"of another shape \(embedding.weight \(10, 4\) instead of \(10, 6\)"):
        load_weights(TiedModel(6), folder)
    with pytest.raises(WeightsError, match=r"2 tensors missing \(bias, weight\); .* unknown"):
        load_weights(nn.Linear(4, 4), folder)


def test_cut_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError, match="not a readable safetensors file"):
        load_weights(TiedModel(4), folder)


def test_weights_may_come_in_several_files_beside_those_of_others(tmp_path: Path) -> None:
    model = TiedModel(4)
    state = {name: value for name, value in model.state_dict().items() if name != "output.weight"}
    save_file({"embedding.weight": state.pop("embedding.weight")}, tmp_path / "model-00001-of-00002.safetensors")
    save_file(state, tmp_path / "model-00002-of-00002.safetensors")
    save_file({"moment": torch.ones(3)}, tmp_path / "optimiser.safetensors")
    loaded = TiedModel(4)
    load_weights(loaded, tmp_path)
    assert torch.equal(loaded.output.weight, model.output.weight)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    model = TiedModel(4)
    model.norm.weight.data.fill_(float("nan"))
    save_weights(model, tmp_path, Sizes(width=4))
    with pytest.raises(WeightsError, match=r"not finite \(norm.weight\)"):
        load_weights(TiedModel(4), tmp_path)
