"""A corpus of hostile model folders and LoRA files: no code of theirs runs, each gets one clear sentence, nothing
changes.

The folders are made from a good tiny model, so that each fails for the one thing that is wrong with it. Ids and presets
that lead elsewhere are in ``test_presets``, hostile answers of a server in ``test_hub``.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aig.published import pipelines
from tests import families

UNET = "unet/diffusion_pytorch_model.safetensors"
LORA = "lora/pytorch_lora_weights.safetensors"
KIND = "StableDiffusionPipeline"


class Marks:
    """Writes the marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.marker}",))


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good") / "model"
    families.save("sd", folder)
    return folder


@pytest.fixture(scope="module")
def live(good):
    """The model that serves images meanwhile, and its image before any attack."""
    pipe = pipelines.load(good, KIND)
    return pipe, image(pipe)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "marker"


@pytest.fixture
def hostile(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "hostile"))


def image(pipe) -> torch.Tensor:
    return pipe("a", num_inference_steps=2, height=16, width=16, output_type="pt", generator=torch.Generator().manual_seed(0)).images


def changed(path: Path, **values: object) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def code(marker: Path) -> str:
    return f"import pathlib\npathlib.Path({str(marker)!r}).touch()\nclass Evil: pass\n"


def header(length: int, text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text + data


def flipped(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 0xFF
    path.write_bytes(content)


def with_weight(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def index_of(folder: Path, name: str) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"conv_in.weight": name}})
    )


def pickled(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Marks(marker)))


def only_bin(folder: Path, marker: Path) -> None:
    (folder / UNET).unlink()
    pickled(folder / "unet" / "diffusion_pytorch_model.bin", marker)


def own_pipeline(folder: Path, marker: Path) -> None:
    (folder / "pipeline.py").write_text(code(marker))
    (folder / "Evil.py").write_text(code(marker))
    changed(folder / "model_index.json", _class_name=["Evil", "Evil"])


def own_component(folder: Path, marker: Path) -> None:
    (folder / "unet" / "evil.py").write_text(code(marker))
    changed(folder / "model_index.json", unet=["evil", "Evil"])


def linked_out(folder: Path, marker: Path) -> None:
    secret = folder.parent / "secret.safetensors"
    shutil.move(folder / UNET, secret)
    (folder / UNET).symlink_to(secret)


def linked_folder(folder: Path, marker: Path) -> None:
    shutil.move(folder / "unet", folder.parent / "unet")
    (folder / "unet").symlink_to(folder.parent / "unet")


def doubled(folder: Path, marker: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(path.read_text().rstrip().rstrip("}").rstrip() + ', "unet": ["os", "system"]}')


def swap(folder: Path, **values: object) -> None:
    changed(folder / "model_index.json", **values)


FOLDERS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "pickle renamed safetensors": (lambda f, m: pickled(f / UNET, m), "unet/diffusion_pytorch_model.safetensors cannot be read as safetensors"),
    "pickle as text encoder": (lambda f, m: pickled(f / "text_encoder/model.safetensors", m), "text_encoder/model.safetensors cannot be read"),
    "only .bin": (only_bin, "unet has no .safetensors weights; other formats can hold code"),
    "own pipeline class": (own_pipeline, "names the pipeline .*Evil.*, where StableDiffusionPipeline is expected"),
    "pipeline os.system": (lambda f, m: swap(f, _class_name="os.system"), "names the pipeline 'os.system'"),
    "another stock pipeline": (lambda f, m: swap(f, _class_name="OnnxStableDiffusionPipeline"), "names the pipeline 'Onnx"),
    "own component code": (own_component, r"wants \['evil', 'Evil'\] as unet, allowed are diffusers"),
    "component from os": (lambda f, m: swap(f, unet=["os", "system"]), r"wants \['os', 'system'\] as unet"),
    "component from diffusers, not a model": (lambda f, m: swap(f, unet=["diffusers", "utils"]), "wants .*'utils'.* as unet"),
    "scheduler as unet": (lambda f, m: swap(f, unet=["diffusers", "DDIMScheduler"]), "as unet, allowed are"),
    "automatic class": (lambda f, m: swap(f, text_encoder=["transformers", "AutoModel"]), "as text_encoder, allowed are"),
    "three parts": (lambda f, m: swap(f, vae=["diffusers", "AutoencoderKL", "x"]), "as vae, allowed are"),
    "unknown component": (lambda f, m: swap(f, evil=["diffusers", "AutoencoderKL"]), "names the component 'evil'"),
    "path as component": (lambda f, m: swap(f, **{"../vae": ["diffusers", "AutoencoderKL"]}), "names the component '../vae'"),
    "missing component": (lambda f, m: swap(f, vae=[None, None]), r"wants \[None, None\] as vae"),
    "missing folder": (lambda f, m: shutil.rmtree(f / "vae"), "lacks vae/"),
    "component twice": (doubled, "'unet' stands there twice"),
    "no index": (lambda f, m: (f / "model_index.json").unlink(), "has no model_index.json"),
    "deep JSON": (lambda f, m: (f / "model_index.json").write_text("[" * 200_000), "nested too deeply"),
    "deep component JSON": (lambda f, m: (f / "unet/config.json").write_text('{"a":' * 200_000), "unet/config.json is nested too deeply"),
    "list as index": (lambda f, m: (f / "model_index.json").write_text("[]"), "is not a JSON object"),
    "binary index": (lambda f, m: (f / "model_index.json").write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
    "huge JSON": (lambda f, m: os.truncate(f / "unet/config.json", 2**33), "8,589,934,592 bytes, at most"),
    "auto_map in the text encoder": (lambda f, m: changed(f / "text_encoder/config.json", auto_map={"AutoModel": "evil.Evil"}), "asks for auto_map"),
    "auto_map in the tokenizer": (lambda f, m: changed(f / "tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.E", None]}), "asks for auto_map"),
    "custom_pipeline key": (lambda f, m: changed(f / "unet/config.json", custom_pipeline="evil"), "asks for custom_pipeline"),
    "quantizer": (lambda f, m: changed(f / "unet/config.json", quantization_config={"quant_method": "bitsandbytes"}), "asks for quantization_config"),
    "tokenizer reads elsewhere": (lambda f, m: changed(f / "tokenizer/tokenizer_config.json", tokenizer_file="/etc/passwd"), "names another file, tokenizer_file"),
    "vocabulary elsewhere": (lambda f, m: changed(f / "tokenizer/tokenizer_config.json", vocab_file="../../x"), "names another file, vocab_file"),
    "link to a file outside": (linked_out, "is a link that leads out of the model's folder"),
    "link to a folder outside": (linked_folder, "unet is a link that leads out"),
    "pipe instead of weights": (lambda f, m: ((f / UNET).unlink(), os.mkfifo(f / UNET)), "neither a file nor a folder"),
    "truncated weights": (lambda f, m: os.truncate(f / UNET, (f / UNET).stat().st_size - 100), "cannot be read as safetensors"),
    "empty weights": (lambda f, m: os.truncate(f / UNET, 0), "cannot be read as safetensors"),
    "flipped header byte": (lambda f, m: flipped(f / UNET, 12), "cannot be read as safetensors"),
    "absurd header": (lambda f, m: (f / UNET).write_bytes(header(2**62, b"{}")), "cannot be read as safetensors"),
    "header of 200 MB": (lambda f, m: (f / UNET).write_bytes(header(200_000_000, b"{}")), "cannot be read as safetensors"),
    "deep header": (lambda f, m: (f / UNET).write_bytes(header(100_000, b"[" * 100_000)), "cannot be read as safetensors"),
    "huge declared tensor": (
        lambda f, m: (f / UNET).write_bytes(header(73, b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'[:73].ljust(73))),
        "cannot be read as safetensors",
    ),
    "NaN weights": (lambda f, m: with_weight(f / UNET, lambda t: t["conv_in.weight"].fill_(float("nan"))), "holds NaN or infinite weights in 'conv_in.weight'"),
    "infinite vae": (lambda f, m: with_weight(f / "vae/diffusion_pytorch_model.safetensors", lambda t: t["decoder.conv_in.bias"].fill_(float("inf"))), "vae .*holds NaN or infinite"),
    "missing weights": (lambda f, m: with_weight(f / UNET, lambda t: t.pop("conv_in.weight")), "lacks weights, among them 'conv_in.weight'"),
    "missing encoder weights": (lambda f, m: with_weight(f / "text_encoder/model.safetensors", lambda t: t.pop(next(k for k in t if "q_proj.weight" in k))), "text_encoder .*lacks weights"),
    "wrong shape": (lambda f, m: with_weight(f / UNET, lambda t: t.update({"conv_in.weight": torch.zeros(8, 5, 3, 3)})), "unet of 'hostile'"),
    "index that leads out": (lambda f, m: index_of(f, "../../secret.safetensors"), "names the weights '../../secret.safetensors'"),
    "index to a pickle": (lambda f, m: index_of(f, "diffusion_pytorch_model.bin"), "names the weights 'diffusion_pytorch_model.bin'"),
    "index to an absolute path": (lambda f, m: index_of(f, "/etc/passwd"), "names the weights '/etc/passwd'"),
    "index to nothing": (lambda f, m: index_of(f, "diffusion_pytorch_model-00001-of-00002.safetensors"), "which are missing"),
    "a billion layers": (lambda f, m: changed(f / "unet/config.json", layers_per_block=10**9), "declares layers_per_block = 1000000000"),
    "a billion channels": (lambda f, m: changed(f / "unet/config.json", block_out_channels=[8, 10**9]), "declares block_out_channels = 1000000000"),
    "a billion encoder layers": (lambda f, m: changed(f / "text_encoder/config.json", num_hidden_layers=10**9), "declares num_hidden_layers"),
    "config of another model": (lambda f, m: changed(f / "unet/config.json", block_out_channels=[16, 16]), "The unet of 'hostile'"),
    "nonsense config": (lambda f, m: changed(f / "unet/config.json", down_block_types=["os.system"]), "The unet of 'hostile' cannot be loaded"),
    "broken tokenizer": (lambda f, m: (f / "tokenizer/tokenizer.json").write_text("{}"), "The tokenizer of 'hostile' cannot be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_gets_one_sentence_and_changes_nothing(name: str, hostile: Path, marker: Path, live) -> None:
    attack, message = FOLDERS[name]
    attack(hostile, marker)
    with pytest.raises(ValueError, match=message) as caught:
        pipelines.load(hostile, KIND)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and str(hostile.parent) not in text
    assert not marker.exists()
    pipe, before = live
    assert torch.equal(image(pipe), before)


def test_code_that_nothing_names_is_never_run(hostile: Path, marker: Path, live) -> None:
    """Modules, templates and pickles that lie about in a model's folder; it loads, and they are only files."""
    for name in (
        "pipeline.py",
        "unet/diffusers.py",
        "tokenizer/tokenization_clip.py",
        "text_encoder/modeling.py",
        "__init__.py",
        "StableDiffusionPipeline.py",
    ):
        (hostile / name).write_text(code(marker))
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "scheduler/scheduler.pkl"):
        pickled(hostile / name, marker)
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for x in range(10**9) %}{% endfor %}"
    changed(hostile / "tokenizer" / "tokenizer_config.json", chat_template=template)
    (hostile / "tokenizer" / "chat_template.jinja").write_text(template)
    swap(hostile, safety_checker=["evil", "Evil"], requires_safety_checker=True)
    loaded = pipelines.load(hostile, KIND)
    assert not marker.exists() and torch.equal(image(loaded), live[1]) and loaded.safety_checker is None


def lora(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], metadata: dict | None = None) -> None:
    tensors = load_file(folder / LORA)
    change(tensors)
    save_file(tensors, folder / LORA, metadata=metadata)


def first(tensors: dict[str, torch.Tensor], half: str = "lora_A") -> str:
    return next(key for key in tensors if half in key)


def huge_rank(tensors: dict[str, torch.Tensor]) -> None:
    key = first(tensors)
    other = key.replace("lora_A", "lora_B")
    tensors.update({key: torch.ones(4096, tensors[key].shape[1]), other: torch.ones(len(tensors[other]), 4096)})


LORAS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "pickle": (lambda f, m: pickled(f / LORA, m), "cannot be read as safetensors"),
    "truncated": (lambda f, m: os.truncate(f / LORA, (f / LORA).stat().st_size - 50), "cannot be read as safetensors"),
    "flipped header byte": (lambda f, m: flipped(f / LORA, 20), "cannot be read as safetensors|holds|belongs|half"),
    "absurd header": (lambda f, m: (f / LORA).write_bytes(header(2**62, b"{}")), "cannot be read as safetensors"),
    "gone": (lambda f, m: (f / LORA).unlink(), "has no file 'pytorch_lora_weights.safetensors'"),
    "link outside": (lambda f, m: (shutil.move(f / LORA, f.parent / "x"), (f / LORA).symlink_to(f.parent / "x")), "leads out"),
    "NaN": (lambda f, m: lora(f, lambda t: t[first(t)].fill_(float("nan"))), "holds NaN or infinite values"),
    "infinite": (lambda f, m: lora(f, lambda t: t[first(t)].fill_(float("inf"))), "holds NaN or infinite values"),
    "huge rank": (lambda f, m: lora(f, huge_rank), "rank 4096"),
    "wrong shape": (lambda f, m: lora(f, lambda t: t.update({first(t): torch.ones(2, 3)})), r"has the shape \(2, 3\), but .* takes \(2, 16\)"),
    "half missing": (lambda f, m: lora(f, lambda t: t.pop(first(t))), "only one half of a layer"),
    "unknown layer": (lambda f, m: lora(f, lambda t: [t.update({k.replace("down_blocks", "os"): t.pop(k)}) for k in list(t)]), "belongs to no linear or convolution layer of UNet2DConditionModel"),
    "text encoder": (lambda f, m: lora(f, lambda t: t.update({"text_encoder.layers.0.lora_A.weight": torch.ones(2, 4)})), "also tunes the text encoder"),
    "absurd alpha": (lambda f, m: lora(f, lambda t: None, {"lora_adapter_metadata": '{"unet.lora_alpha": 1e12}'}), "alpha"),
    "regular expression as alpha": (lambda f, m: lora(f, lambda t: None, {"lora_adapter_metadata": '{"unet.alpha_pattern": {"(a+)+$": 1}}'}), "is not a layer name"),
    "deep metadata": (lambda f, m: lora(f, lambda t: None, {"lora_adapter_metadata": "[" * 200_000}), "cannot be read|nested"),
    "empty": (lambda f, m: lora(f, lambda t: t.clear()), "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["fused", "switched"])
@pytest.mark.parametrize("name", LORAS)
def test_a_hostile_lora_never_reaches_the_live_model(name: str, mode: str, hostile: Path, marker: Path, live) -> None:
    attack, message = LORAS[name]
    attack(hostile, marker)
    pipe, before = live
    with pytest.raises(ValueError, match=message) as caught:
        pipelines.tuned(pipe, families.source("lora"), hostile, mode=mode)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 and str(hostile.parent) not in text
    assert not marker.exists() and torch.equal(image(pipe), before)


SECOND = "second/diffusion_pytorch_model.safetensors"
SECONDS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "pickle": (lambda f, m: pickled(f / SECOND, m), "cannot be read as safetensors"),
    "another class": (lambda f, m: changed(f / "second/config.json", _class_name="FluxTransformer2DModel"), "is a 'FluxTransformer2DModel', the base model's is a UNet2DConditionModel"),
    "class os.system": (lambda f, m: changed(f / "second/config.json", _class_name="os.system"), "is a 'os.system'"),
    "other width": (lambda f, m: changed(f / "second/config.json", block_out_channels=[8, 32]), "has block_out_channels = .8, 32., the base model .8, 16."),
    "NaN": (lambda f, m: with_weight(f / SECOND, lambda t: t["conv_out.bias"].fill_(float("nan"))), "holds NaN or infinite weights in 'conv_out.bias'"),
    "missing": (lambda f, m: with_weight(f / SECOND, lambda t: t.pop("conv_out.bias")), "lacks weights"),
    "no folder": (lambda f, m: shutil.rmtree(f / "second"), "lacks second/"),
    "link outside": (lambda f, m: (shutil.move(f / "second", f.parent / "s"), (f / "second").symlink_to(f.parent / "s")), "leads out"),
}  # fmt: skip


@pytest.mark.parametrize("name", SECONDS)
def test_a_hostile_second_denoiser_never_reaches_the_live_model(name: str, hostile: Path, marker: Path, live) -> None:
    attack, message = SECONDS[name]
    attack(hostile, marker)
    pipe, before = live
    with pytest.raises(ValueError, match=message) as caught:
        pipelines.tuned(pipe, families.source("denoiser"), hostile)
    assert "\n" not in str(caught.value) and not marker.exists() and torch.equal(image(pipe), before)
