"""Downloads from a local server by the Hub's real client: progress, resuming, checksums, a full disk, a process of their own."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from aig.published import downloads, hub, presets
from tests.hubserver import BASE, BIG, COMMIT, MODEL, WANTED, WEIGHTS, tuned


def stored(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    found.pop(downloads.MANIFEST, None)
    return found


def test_fetching_reports_progress_and_ends_with_the_exact_files(server) -> None:
    assert downloads.located(BASE) is None
    planned, seen = hub.plan(BASE, endpoint=server.url), []
    folder = downloads.fetch(planned, lambda done, total: seen.append((done, total)), endpoint=server.url)
    assert stored(folder) == {name: MODEL[name] for name in WANTED}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen) and seen[-1] == (planned.total, planned.total)
    assert downloads.located(BASE) == folder and downloads.located(tuned()) is None
    count = len(server.asked)
    assert downloads.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url) == folder
    assert len(server.asked) == count + 1  # the listing alone
    downloads.fetch(hub.plan(tuned(), endpoint=server.url), endpoint=server.url)
    assert downloads.located(tuned()) == downloads.located(BASE) == folder
    (folder / BIG).write_bytes(b"cut")
    assert downloads.located(BASE) is None


def test_a_cut_connection_is_resumed_where_it_ended(server) -> None:
    server.cut = {BIG: 2**20}
    folder = downloads.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url)
    assert (folder / BIG).read_bytes() == WEIGHTS
    assert server.ranges == [f"bytes={2**20}-"]


def test_a_later_attempt_continues_the_file(server) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    part = planned.folder / (BIG + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[: 2**20])  # what a killed process leaves behind
    assert hub.plan(BASE, endpoint=server.url).left == planned.total - 2**20
    folder = downloads.fetch(planned, endpoint=server.url)
    assert (folder / BIG).read_bytes() == WEIGHTS and server.ranges == [f"bytes={2**20}-"] and not part.exists()


@pytest.mark.parametrize("name", [BIG, "unet/config.json"])
def test_a_wrong_checksum_is_told_and_leaves_no_file(server, name: str) -> None:
    server.flip = {name}
    with pytest.raises(hub.Unavailable, match=f"'{name}' of owner/model arrived with a wrong checksum"):
        downloads.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url)
    folder = hub.store() / "owner--model" / COMMIT
    assert not (folder / name).exists() and not (folder / (name + ".part")).exists() and downloads.located(BASE) is None
    server.flip = set()
    assert (downloads.fetch(hub.plan(BASE, endpoint=server.url), endpoint=server.url) / name).read_bytes() == MODEL[name]


def test_refusals_during_the_download(server) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    server.status[BIG] = (404, "EntryNotFound")
    with pytest.raises(hub.Unavailable, match="A file of owner/model has vanished"):
        downloads.fetch(planned, endpoint=server.url)
    server.status[BIG] = (403, "GatedRepo")
    with pytest.raises(hub.Unavailable, match="gated"):
        downloads.fetch(planned, endpoint=server.url)
    assert downloads.located(BASE) is None


def test_a_full_disk_is_told_before_and_during(server, monkeypatch) -> None:
    planned = hub.plan(BASE, endpoint=server.url)
    usage = shutil.disk_usage("/")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
        with pytest.raises(hub.Unavailable, match="needs 3.1 MB and the disk has 1.0 MB free"):
            hub.plan(BASE, endpoint=server.url)
        with pytest.raises(hub.Unavailable, match="1.0 MB free"):
            downloads.fetch(planned, endpoint=server.url)

    def full(done: int, total: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as the file system raises it while writing

    with pytest.raises(hub.Unavailable, match="The disk is full"):
        downloads.fetch(planned, full, endpoint=server.url)


def test_an_offline_process_fetches_in_a_process_of_its_own(server, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    events = list(downloads.apart(BASE))
    assert "12 files" in events[0]["plan"] and events[-2]["done"] == events[-2]["total"] == events[0]["total"]
    assert events[-1]["folder"] == str(downloads.located(BASE))
    server.status["api"] = (403, "GatedRepo")
    with pytest.raises(hub.Unavailable, match="is gated"):
        list(downloads.apart(tuned(), only_plan=True))
    assert huggingface_hub.constants.HF_HUB_OFFLINE


def test_git_checksums_are_those_of_git(tmp_path) -> None:
    (tmp_path / "a").write_bytes(b"hello\n")
    assert downloads.digest(tmp_path / "a", 40) == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object


def test_the_command_fetches_a_preset_and_names_what_it_cannot(server, monkeypatch, tmp_path, capsys) -> None:
    from aig import __main__ as cli

    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(presets, "load", lambda name: BASE)
    assert cli.main(["fetch", "base"]) == 0
    printed = capsys.readouterr().out
    assert "owner/model: licence CreativeML OpenRAIL-M, not pinned" in printed and "12 files" in printed
    assert str(downloads.located(BASE)) in printed
    assert cli.main(["fetch", "base", "--tuned", "x"]) == 2
    assert "has no tuned weights 'x'; choose among: none" in capsys.readouterr().err
