"""Published rewards and image features for models of real pictures, differentiable in the images.

As ``aig.portraits.rewards`` has it: images (B, 3, H, W) in [0, 1], here of any size, and B prompts -> (B,), float32.

* pickscore: Kirstain et al., arXiv 2305.01569. The cosine of image and prompt times the model's logit scale.
* hpsv2: HPSv2.1, Wu et al., arXiv 2306.09341. The cosine, as its authors report it.
* imagereward: Xu et al., arXiv 2304.05977. Standardised by the authors' mean and deviation.
* aesthetics: LAION aesthetics v2 (sac+logos+ava1-l14-linearMSE), from about 1 to 10; it does not read the prompt.
* clip: CLIPScore, Hessel et al., arXiv 2104.08718: 2.5 max(cos, 0), with CLIP ViT-L/14 instead of their B/32, and
  without their prefix "A photo depicts", since prompts are not captions of photos.

Left out: the originals' clean-up of broken Unicode and HTML entities in prompts (ftfy), and conversions of these
weights to safetensors by third parties, whose contents nobody vouches for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from aig.published.downloads import digest
from aig.published.towers import (
    AESTHETICS_HEAD,
    Aesthetics,
    Cosine,
    ImageReward,
    Scorer,
    clip_features,
    dinov2_features,
)

SCORERS = ("pickscore", "hpsv2", "imagereward", "aesthetics", "clip")
FEATURES = ("dinov2", "clip")

CLIP_L = ("openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41")
CLIP_H = ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "1c2b8495b28150b8a4922ee1c8edee224c284c0c")
PICKSCORE = ("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")
HPS = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
IMAGEREWARD = ("THUDM/ImageReward", "5736be03b2652728fb87788c9797b0570450ab72")
BERT = ("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594")
AESTHETICS = ("camenduru/improved-aesthetic-predictor", None)  # a mirror of the authors' file; its checksum is known
DINOV2 = ("facebook/dinov2-base", "f9e44c814b77203eaa57a6bdbbd535f21ede1415")

FILES: dict[str, tuple[tuple[str, str | None, str], ...]] = {
    "pickscore": (
        (*PICKSCORE, "config.json"),
        (*PICKSCORE, "model.safetensors"),
        (*CLIP_H, "vocab.json"),
        (*CLIP_H, "merges.txt"),
    ),
    "hpsv2": (
        (*HPS, "HPS_v2.1_compressed.pt"),
        (*CLIP_H, "config.json"),
        (*CLIP_H, "vocab.json"),
        (*CLIP_H, "merges.txt"),
    ),
    "imagereward": ((*IMAGEREWARD, "ImageReward.pt"), (*IMAGEREWARD, "med_config.json"), (*BERT, "vocab.txt")),
    "aesthetics": (
        (*AESTHETICS, AESTHETICS_HEAD),
        (*CLIP_L, "config.json"),
        (*CLIP_L, "model.safetensors"),
    ),
    "clip": (
        (*CLIP_L, "config.json"),
        (*CLIP_L, "model.safetensors"),
        (*CLIP_L, "vocab.json"),
        (*CLIP_L, "merges.txt"),
    ),
    "dinov2": ((*DINOV2, "config.json"), (*DINOV2, "model.safetensors")),
}

SHA256 = {  # (repository, file): as several users of these files record it; the others' are not known to us
    (CLIP_L[0], "model.safetensors"): "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
    (HPS[0], "HPS_v2.1_compressed.pt"): "c57a38fb4a2f7e7c15bf00da2ea377cdf165448b4dd1052a484c215a998c9837",
    (AESTHETICS[0], AESTHETICS_HEAD): "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0",
    (DINOV2[0], "model.safetensors"): "d73036b56966966d07975d696bde331762f37297e2f095de8cea0040c3aa0841",
}

Source = str | Path | Mapping[str, str | Path] | None


def files(name: str) -> tuple[tuple[str, str | None, str], ...]:
    """(repository, revision or None if it is not pinned, file) of everything that a reward or feature model reads."""
    if name not in FILES:
        raise ValueError(f"Unknown reward or feature model {name!r}; choose one of: {', '.join(FILES)}.")
    return FILES[name]


def load(name: str, source: Source = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Scorer:
    """A published reward by name, frozen, its towers in ``dtype``.

    ``source``: a folder with the files of ``files(name)`` side by side, or a folder for each repository; None fetches
    them through the Hub's cache. ValueError, one sentence: an unknown name, or a file that is missing, damaged, not
    what is expected, or not to be had.
    """
    if name not in SCORERS:
        raise ValueError(f"Unknown reward {name!r}; choose one of: {', '.join(SCORERS)}.")
    paths = located(name, source)
    if name == "imagereward":
        return ImageReward(paths, dtype).to(device).eval()
    if name == "aesthetics":
        return Aesthetics(paths, dtype).to(device).eval()
    return Cosine(name, paths, dtype).to(device).eval()


def load_features(
    name: str, source: Source = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Images (B, 3, H, W) in [0, 1] -> features (B, D) on ``device``, float32, without gradient.

    dinov2: the class token of DINOv2 ViT-B/14 (Oquab et al., arXiv 2304.07193). clip: CLIP ViT-L/14's image embedding.
    ``source`` and errors as in ``load``.
    """
    if name not in FEATURES:
        raise ValueError(f"Unknown feature model {name!r}; choose one of: {', '.join(FEATURES)}.")
    paths = located(name, source)
    return (clip_features if name == "clip" else dinov2_features)(paths, dtype).to(device).eval()


def located(name: str, source: Source) -> dict[str, Path]:
    """File -> path of everything that ``files(name)`` lists."""
    if source is None:
        return {file: fetched(repo, revision, file) for repo, revision, file in files(name)}
    paths = {}
    for repo, revision, file in files(name):
        if isinstance(source, Mapping) and repo not in source:
            raise ValueError(f"The reward or feature model {name!r} needs a folder for {repo}.")
        folder = Path(source[repo] if isinstance(source, Mapping) else source)
        paths[file] = folder / file
        if not paths[file].is_file():
            raise ValueError(f"The folder {folder.name!r} has no {file}, which {name!r} needs from {repo}.")
        if isinstance(source, Mapping) and revision is None:  # what is pinned was checked when it was fetched
            verify(paths[file], repo, file)
    return paths


def fetched(repo: str, revision: str | None, file: str) -> Path:
    """A file in the Hub's cache, downloaded if need be and compared with its checksum where that is known."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if revision is None:
        known = "its checksum is checked" if (repo, file) in SHA256 else "whatever it contains now is used"
        warnings.warn(f"{repo} is not pinned to a revision; {known}.", stacklevel=4)
    try:
        path = Path(hf_hub_download(repo, file, revision=revision))
    except (HfHubHTTPError, OSError) as problem:
        why = type(problem).__name__
        raise ValueError(f"{file} of {repo} is neither on this machine nor to be had from the Hub ({why}).") from None
    verify(path, repo, file)
    return path


def verify(path: Path, repo: str, file: str) -> None:
    """Compare a file with its checksum, where that is known; ValueError when it differs."""
    known = SHA256.get((repo, file))
    if known and digest(path) != known:
        raise ValueError(f"{file} of {repo} differs from its checksum; delete it where it was downloaded to.")
