"""What a user is told when an encoder cannot be had. A hub on this machine stands in for the real one."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DINOv3ViTConfig, DINOv3ViTModel
from transformers.utils import logging

from priors import checkpoints
from priors.dinov3 import load_encoder

VITS16 = "facebook/dinov3-vits16-pretrain-lvd1689m"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    DINOv3ViTModel(config).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache and HF_HUB_OFFLINE=1, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does: gated models with 403, everything else with 404."""

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", endpoint)
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_packaged_encoder_without_its_weights_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "TINY_FOLDER", tmp_path / "tiny")
    with pytest.raises(ValueError, match="missing weights: the packaged encoder 'tiny'"):
        load_encoder("tiny")


@pytest.mark.parametrize("name", ["dinov9", "./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere"])
def test_a_name_that_is_nothing_is_answered_without_asking_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ValueError, match=r"unknown encoder '.*': no such folder, and need 'tiny'"):
        load_encoder(name)


def test_offline_and_not_cached(offline: Path) -> None:
    with pytest.raises(ValueError, match="not in the local hub cache") as caught:
        load_encoder(VITS16)
    for advice in ("HF_HUB_OFFLINE", f"https://huggingface.co/{VITS16}", "hf auth login", "'tiny'"):
        assert advice in str(caught.value)


def test_offline_and_cached_loads_from_the_cache(offline: Path, folder: Path) -> None:
    model = offline / "models--owner--model"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("0" * 40)
    (model / "snapshots").mkdir()
    folder.rename(model / "snapshots" / ("0" * 40))
    encoder = load_encoder("owner/model")
    assert (encoder.name, encoder.channels) == ("owner/model", 16)


@pytest.mark.usefixtures("hub")
def test_gated_weights_name_the_licence_and_the_ways_out() -> None:
    with pytest.raises(ValueError, match="is gated: accept its licence at") as caught:
        load_encoder("owner/gated-model")
    for advice in ("https://huggingface.co/owner/gated-model", "hf auth login", "local folder"):
        assert advice in str(caught.value)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["owner/nothing", "owner/--bad--name"])
def test_a_model_that_the_hub_does_not_know(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown encoder '{name}': .* no such public model"):
        load_encoder(name)


def test_a_truncated_file_is_called_corrupted(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"corrupted: .*model.safetensors \(\d+ bytes\)"):
        load_encoder(folder)
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"corrupted: .*model.safetensors \(43 bytes\)"):
        load_encoder(folder)


def test_incomplete_misshapen_or_meaningless_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    bias = next(key for key in weights if key.endswith("up_proj.bias"))
    level = logging.get_verbosity()
    # transformers prints its own table of what it found; this test is about ours.
    logging.set_verbosity_error()
    try:
        less = {key: value for key, value in weights.items() if key != bias}
        save_file(less, folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"incomplete: 1 missing, .*up_proj\.bias first"):
            load_encoder(folder)
        save_file(weights | {bias: torch.zeros(3)}, folder / "model.safetensors")
        with pytest.raises(ValueError, match="cannot load the encoder"):
            load_encoder(folder)
        save_file(weights | {bias: weights[bias] * torch.nan}, folder / "model.safetensors")
        with pytest.raises(ValueError, match=r"corrupted: .*up_proj\.bias not finite"):
            load_encoder(folder)
    finally:
        logging.set_verbosity(level)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"missing weights: .* no .safetensors file"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "need an encoder's folder with a config.json, got"),
        ("{", "cannot read .*config.json"),
        ("[1]", "cannot read .*config.json"),
        ('{"model_type": "vit"}', "is of type 'vit'; need one of dinov3_vit, dinov2"),
        ('{"model_type": "dinov3_vit", "hidden_size": "wide"}', "cannot load the encoder"),
    ],
)
def test_configurations_that_are_none(folder: Path, config: str | None, message: str) -> None:
    (folder / "config.json").unlink()
    if config is not None:
        (folder / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        load_encoder(folder)
    with pytest.raises(ValueError, match="need an encoder's folder, got a file"):
        load_encoder(folder / "model.safetensors")


def test_a_torchvision_that_does_not_match_is_named(tmp_path: Path, folder: Path) -> None:
    broken = tmp_path / "site" / "torchvision"
    broken.mkdir(parents=True)
    # What a torchvision built for another torch does when it is imported.
    (broken / "__init__.py").write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")'
    )
    info = tmp_path / "site" / "torchvision-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
    program = f"from priors.dinov3 import load_encoder; load_encoder({json.dumps(str(folder))})"
    run = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        check=False,
    )
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: cannot import transformers' DINOv3ViTModel: most likely")
    assert "torchvision does not match torch" in last
    assert "uninstall torchvision" in last
