"""A Hub of one repository for the tests of what is fetched."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hubserver import MODEL, Hub, serving


@pytest.fixture
def server(monkeypatch, tmp_path) -> Iterator[Hub]:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 2**18)  # of the client; the files here are small
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("AIG_STORE", str(tmp_path / "store"))
    with serving(dict(MODEL)) as running:
        yield running
    huggingface_hub.close_session()
