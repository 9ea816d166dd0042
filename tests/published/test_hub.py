"""The real client of the Hub against a local server: what is fetched, progress, resuming, checksums, and every
refusal."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from aig.published import hub, presets
from tests.hubserver import COMMIT, Hub, serving

WEIGHTS = os.urandom(3 * 2**20)
MODEL = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "README.md": b"hello",
    "pipeline.py": b"raise SystemExit",
    "v1-5-pruned.ckpt": b"pickle",
    "v1-5-pruned.safetensors": b"single",
    "scheduler/scheduler_config.json": b"{}",
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"#version",
    "tokenizer/chat_template.jinja": b"{{ 1 }}",
    "tokenizer/tokenizer.py": b"1",
    "text_encoder/config.json": b"{}",
    "text_encoder/model.safetensors": b"one whole",
    "text_encoder/pytorch_model.bin": b"pickle",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"full size",
    "unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS,
    "unet/diffusion_pytorch_model.fp16.bin": b"pickle",
    "vae/config.json": b"{}",
    "vae/model.fp16-00001-of-00002.safetensors": b"shard 1",
    "vae/model.fp16-00002-of-00002.safetensors": b"shard 2",
    "vae/model.safetensors.index.fp16.json": b"{}",
    "vae/model.safetensors": b"full size",
    "safety_checker/config.json": b"{}",
    "safety_checker/model.safetensors": b"not used",
    "lora/weights.safetensors": b"lora",
    "lora/adapter_config.json": b"{}",
}
WANTED = {
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "text_encoder/config.json", "text_encoder/model.safetensors", "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors", "vae/config.json", "vae/model.fp16-00001-of-00002.safetensors",
    "vae/model.fp16-00002-of-00002.safetensors", "vae/model.safetensors.index.fp16.json",
}  # fmt: skip
BIG = "unet/diffusion_pytorch_model.fp16.safetensors"
BASE = presets.parse(
    (presets.FOLDER / "sd15.toml").read_text().split("[[tuned]]")[0]
    .replace("stable-diffusion-v1-5/stable-diffusion-v1-5", "owner/model")
    .replace("451f4fe16113bff5a5d2269ed5ad43b0592e9a14", "main"), "base",
)  # fmt: skip


def tuned(**changes: str) -> presets.Tuned:
    given = {"kind": "lora", "repo": "owner/model", "subfolder": "lora", "weight_name": "weights.safetensors"}
    return presets.Tuned(name="t", reward="r", licence="l", source="s", **{**given, **changes})


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Hub]:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**18
    )  # of the client; the files here are small
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AIG_STORE", str(tmp_path / "store"))
    with serving(dict(MODEL)) as running:
        yield running
    huggingface_hub.close_session()


def stored(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(hub.MANIFEST, None)
    return found


def test_the_plan_lists_exactly_what_is_needed_and_fetches_nothing(server) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    assert {file.name for file in planned.files} == WANTED
    assert planned.commit == COMMIT
    assert planned.total == planned.left == sum(len(MODEL[name]) for name in WANTED)
    assert not planned.folder.exists() and len(server.asked) == 1
    assert "12 files, 3.1 MB, 3.1 MB to download" in str(planned)


def test_without_a_variant_the_full_size_files_are_chosen(server) -> None:
    import dataclasses

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


def test_fetching_reports_progress_and_ends_with_the_exact_files(server) -> None:
    assert hub.located(BASE) is None
    planned, seen = hub.plan(BASE, endpoint=server.url), []
    folder = hub.fetch(planned, lambda done, total: seen.append((done, total)), endpoint=server.url)
    assert stored(folder) == {name: MODEL[name] for name in WANTED}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1] == (planned.total, planned.total)
    assert hub.located(BASE) == folder and hub.located(tuned()) is None
    count = len(server.asked)
    assert hub.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url) == folder
    assert len(server.asked) == count + 1  # the listing alone
    hub.fetch(hub.plan(tuned(), endpoint=server.url), endpoint=server.url)
    assert hub.located(tuned()) == hub.located(BASE) == folder
    (folder / BIG).write_bytes(b"cut")
    assert hub.located(BASE) is None


def test_a_cut_connection_is_resumed_where_it_ended(server) -> None:
    server.cut = {BIG: 2**20}
    folder = hub.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url)
    assert (folder / BIG).read_bytes() == WEIGHTS
    assert server.ranges == [f"bytes={2**20}-"]


def test_a_later_attempt_continues_the_file(server) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    part = planned.folder / (BIG + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[: 2**20])  # what a killed process leaves behind
    assert hub.plan(BASE, endpoint=server.url).left == planned.total - 2**20
    folder = hub.fetch(planned, endpoint=server.url)
    assert (folder / BIG).read_bytes() == WEIGHTS and server.ranges == [f"bytes={2**20}-"] and not part.exists()


@pytest.mark.parametrize("name", [BIG, "unet/config.json"])
def test_a_wrong_checksum_is_told_and_leaves_no_file(server, name: str) -> None:
    server.flip = {name}
    with pytest.raises(hub.Unavailable, match=f"'{name}' of owner/model arrived with a wrong checksum"):
        hub.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url)
    folder = hub.store() / "owner--model" / COMMIT
    assert not (folder / name).exists() and not (folder / (name + ".part")).exists() and hub.located(BASE) is None
    server.flip = set()
    assert (hub.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url) / name).read_bytes() == MODEL[name]


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


def test_refusals_during_the_download(server) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    server.status[BIG] = (404, "EntryNotFound")
    with pytest.raises(hub.Unavailable, match="A file of owner/model has vanished"):
        hub.fetch(planned, endpoint=server.url)
    server.status[BIG] = (403, "GatedRepo")
    with pytest.raises(hub.Unavailable, match="gated"):
        hub.fetch(planned, endpoint=server.url)
    assert hub.located(BASE) is None


def test_timeout_dead_port_and_unknown_revision(server) -> None:
    import dataclasses

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


def test_a_full_disk_is_told_before_and_during(server, monkeypatch) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
        with pytest.raises(hub.Unavailable, match="needs 3.1 MB and the disk has 1.0 MB free"):
            hub.plan(BASE, endpoint=server.url)
        with pytest.raises(hub.Unavailable, match="1.0 MB free"):
            hub.fetch(planned, endpoint=server.url)

    def full(done: int, total: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as the file system raises it while writing

    with pytest.raises(hub.Unavailable, match="The disk is full"):
        hub.fetch(planned, full, endpoint=server.url)


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
    with pytest.raises(
        ValueError, match="no file 'other.safetensors'; its .safetensors files: .*lora/weights.safetensors"
    ):
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


def test_an_offline_process_fetches_in_a_process_of_its_own(server, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    events = list(hub.apart(BASE))
    assert "12 files" in events[0]["plan"] and events[-2]["done"] == events[-2]["total"] == events[0]["total"]
    assert events[-1]["folder"] == str(hub.located(BASE))
    server.status["api"] = (403, "GatedRepo")
    with pytest.raises(hub.Unavailable, match="is gated"):
        list(hub.apart(tuned(), only_plan=True))
    assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_git_checksums_are_those_of_git(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert hub.digest(tmp_path / "a", 40) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_the_command_fetches_a_preset_and_names_what_it_cannot(server, monkeypatch, tmp_path, capsys) -> None:
    from aig import __main__ as cli

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(presets, "load", lambda name: BASE)
    assert cli.main(["fetch", "base"]) == 0
    printed = capsys.readouterr().out
    assert "owner/model: licence CreativeML OpenRAIL-M, not pinned" in printed and "12 files" in printed
    assert str(hub.located(BASE)) in printed
    assert cli.main(["fetch", "base", "--tuned", "x"]) == 2
    assert "has no tuned weights 'x'; choose among: none" in capsys.readouterr().err
