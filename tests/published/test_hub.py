"""The real client of the Hub against a local server: what would be fetched, and every refusal as one line."""

from __future__ import annotations

import dataclasses
import socket

import pytest

from aig.published import hub
from tests.hubserver import BASE, BIG, COMMIT, MODEL, WANTED, tuned


def test_the_plan_lists_exactly_what_is_needed_and_fetches_nothing(server) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    assert {file.name for file in planned.files} == WANTED
    assert planned.commit == COMMIT
    assert planned.total == planned.left == sum(len(MODEL[name]) for name in WANTED)
    assert not planned.folder.exists() and len(server.asked) == 1
    assert "12 files, 3.1 MB, 3.1 MB to download" in str(planned)


def test_without_a_variant_the_full_size_files_are_chosen(server) -> None:
    names = {file.name for file in hub.plan(dataclasses.replace(BASE, variant=""), endpoint=server.url).files}
    assert {name for name in names if name.endswith(".safetensors")} == {
        "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors", "vae/model.safetensors"
    }  # fmt: skip


def test_weights_are_chosen_as_stock_loading_chooses_them() -> None:
    from diffusers.pipelines.pipeline_loading_utils import variant_compatible_siblings

    shards = [f"{i:05}-of-00002" for i in (1, 2)]
    layouts = [
        ["model.safetensors", "model.fp16.safetensors"],
        ["model.safetensors"],
        [*(f"model-{i}.safetensors" for i in shards), "model.safetensors.index.json", "model.fp16.safetensors"],
        [*(f"model.fp16-{i}.safetensors" for i in shards), "model.safetensors.index.fp16.json", "model.safetensors"],
        [*(f"model-{i}.fp16.safetensors" for i in shards), "model.safetensors.fp16.index.json", "model.safetensors"],
        [
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.non_ema.safetensors",
            "other.safetensors",
        ],
    ]
    for layout in layouts:
        names = {f"vae/{name}" for name in layout}
        listed = {"model_index.json", "unet/config.json", "unet/model.fp16.safetensors", "vae/config.json", *names}
        stock = variant_compatible_siblings({*names, "unet/model.fp16.safetensors"}, variant="fp16")[0]
        assert {name for name in hub.needed(listed, BASE) if ".safetensors" in name} == stock


def test_the_plan_of_tuned_weights(server) -> None:
    files = hub.plan(tuned(), endpoint=server.url).files
    assert [file.name for file in files] == ["lora/weights.safetensors", "lora/adapter_config.json"]
    files = hub.plan(tuned(kind="denoiser", subfolder="unet", weight_name=""), endpoint=server.url).files
    assert [file.name for file in files] == ["unet/config.json", "unet/diffusion_pytorch_model.safetensors"]


REFUSALS = {
    "gated": ((403, "GatedRepo"), "owner/model is gated: ask for access at https://.*owner/model and set HF_TOKEN"),
    "forbidden": ((403, ""), "is gated: ask for access"),
    "login": ((401, ""), "owner/model does not exist on the Hub, or needs a login: .* set HF_TOKEN"),
    "vanished": ((404, "RepoNotFound"), "owner/model does not exist on the Hub, or no longer"),
    "busy": ((429, ""), "too many requests"),
    "broken": ((500, ""), "answers with error 500 for owner/model"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_of_the_hub_is_one_clear_line(server, name: str) -> None:
    answer, message = REFUSALS[name]
    server.status["api"] = answer
    with pytest.raises(hub.Unavailable, match=message) as caught:
        hub.plan(BASE, endpoint=server.url)
    assert "\n" not in str(caught.value) and isinstance(caught.value, ValueError)


def test_timeout_dead_port_and_unknown_revision(server) -> None:
    with pytest.raises(hub.Unavailable, match="no revision 'missing'"):
        hub.plan(dataclasses.replace(BASE, revision="missing"), endpoint=server.url)
    server.wait = 1.0
    with pytest.raises(hub.Unavailable, match="did not answer in time"):
        hub.plan(BASE, endpoint=server.url, timeout=0.2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(hub.Unavailable, match="cannot be reached for owner/model: check the network"):
        hub.plan(BASE, endpoint=dead)


def test_repositories_that_hold_no_such_model(server) -> None:
    for gone, message in {
        "model_index.json": "not a diffusers pipeline",
        "unet/config.json": "no config.json in unet",
        "unet/": "no denoiser",
        "text_encoder/model.safetensors": "no .safetensors weights in text_encoder; other formats can hold code",
    }.items():
        server.files = {name: content for name, content in MODEL.items() if not name.startswith(gone)}
        with pytest.raises(ValueError, match=message):
            hub.plan(BASE, endpoint=server.url)
    with pytest.raises(ValueError, match="no file 'other.safetensors'; its .safetensors files: .*lora/weights.safetensors"):
        hub.plan(tuned(subfolder="", weight_name="other.safetensors"), endpoint=server.url)


def test_names_that_leave_the_folder_are_never_planned(server) -> None:
    server.files |= {
        "unet/../../../evil.json": b"{}",
        "/etc/evil.json": b"{}",
        "unet/..\\evil.json": b"{}",
        "unet/\u202eevil.json": b"{}",
    }
    assert {file.name for file in hub.plan(BASE, endpoint=server.url).files} == WANTED


def test_absurd_sizes_are_refused(server) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 10**15

    server.files["unet/config.json"] = Huge(b"{}")
    with pytest.raises(ValueError, match="unet/config.json.* large, too much for a configuration"):
        hub.plan(BASE, endpoint=server.url)
    server.files |= {"unet/config.json": b"{}", BIG: Huge(b"")}
    with pytest.raises(ValueError, match="large, at most 200.0 GB are fetched"):
        hub.plan(BASE, endpoint=server.url)


def test_offline_is_told_with_the_command_that_helps(server, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(hub.Unavailable, match="runs without network: fetch it with python -m aig fetch"):
        hub.plan(BASE, endpoint=server.url)
    assert not server.asked
