"""Command line: ``python -m aig compare "a person with glasses" --schedule power_2 --images 4 --out grid.png``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from aig.assets import ASSETS
from aig.machine import cores
from aig.machine.silence import quiet
from aig.method import schedules
from aig.runs import columns


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when it worked, 2 with one sentence on stderr when the input was bad, 1 when the run failed."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    cores.settle()  # before a command loads torch
    options = parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError) as problem:
        print(f"aig: {problem}", file=sys.stderr)
        return 2
    except (RuntimeError, FloatingPointError) as problem:
        print(f"aig: {problem}", file=sys.stderr)
        return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The commands and their options; the defaults of ``compare`` are those of ``Request``."""
    top = argparse.ArgumentParser(prog="python -m aig", description="Annealed Importance Guidance")
    commands = top.add_subparsers(required=True, metavar="command")

    compare = commands.add_parser("compare", help="base, reward-tuned and AIG images of the same seeds, with scores")
    compare.set_defaults(run=run_compare)
    compare.add_argument("prompt", nargs="?", default="", help="empty: unconditional")
    compare.add_argument("--out", type=Path, help="PNG with all grids and the settings inside")
    compare.add_argument("--json", action="store_true", help="print the scores as JSON")
    compare.add_argument("--schedule", help="base, draft, linear, power_P, step_F, constant_W, sigmoid_K_M, cosine or points:...")
    compare.add_argument("--tuning", help="the tuned model; preference by default")
    for name, kind in (("seed", int), ("images", int), ("steps", int), ("guidance", float), ("lora-scale", float), ("kl", float)):
        compare.add_argument(f"--{name}", type=kind)
    compare.add_argument("--closed", action="store_true", help="end the curve at 1: progress i/(T-1)")
    compare.add_argument(
        "--column", action="append", dest="columns", metavar="TEXT", help="one more column, see the command columns; up to 3"
    )

    listing = commands.add_parser("schedules", help="the named schedules and their shares of the tuned model")
    listing.set_defaults(run=run_schedules)
    listing.add_argument("--steps", type=int, default=10)

    kinds = commands.add_parser("columns", help="the columns that can be added, with rule, source and cost")
    kinds.set_defaults(run=run_columns)

    fetch = commands.add_parser("fetch", help="download a preset's published weights; says first how large they are")
    fetch.set_defaults(run=run_fetch)
    fetch.add_argument("preset", help="a file of assets/presets, such as sdxl")
    fetch.add_argument("--tuned", action="append", default=[], metavar="NAME", help="of the preset's tuned weights; all by default")
    fetch.add_argument("--plan", action="store_true", help="only say what would be downloaded")

    replay = commands.add_parser("replay", help="record the runs of the page's examples, after the weights changed")
    replay.set_defaults(run=run_replay)

    draft = commands.add_parser("draft", help="tune a LoRA of a real model on a reward, with a KL term (DRaFT+)")
    draft.set_defaults(run=run_draft)
    draft.add_argument("--model", required=True, metavar="NAME", help="a preset, or a folder with a diffusers pipeline")
    rewards = "pickscore, hpsv2, imagereward, aesthetics, clip, or of the embedded world"
    draft.add_argument("--reward", required=True, metavar="NAME", help=rewards)
    draft.add_argument("--reward-folder", type=Path, metavar="FOLDER", help="with its files, instead of the Hub")
    draft.add_argument("--prompts", required=True, type=Path, metavar="FILE", help="one a line")
    draft.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="for the LoRA; a killed run goes on")
    for name, kind, words in (
        ("updates", int, "of the LoRA"),
        ("kl", float, "coefficient of the KL term, 0 by default"),
        ("seed", int, "0 by default"),
        ("batch", int, "images an update; 64 for Stable Diffusion 1 and 2, else 32"),
        ("at-once", int, "images in memory, 4 by default"),
        ("truncation", int, "last steps that are differentiated, 1 by default"),
        ("steps", int, "of sampling, 25 by default"),
        ("guidance", float, "by default the pipeline's own"),
        ("size", int, "pixels of a side, by default the pipeline's own"),
        ("rank", int, "of the LoRA, 32 by default"),
        ("rate", float, "of learning, 2.5e-4 by default"),
        ("clip", float, "norm of the gradient, 10 by default"),
        ("precision", str, "bf16 or no; bf16 on a GPU by default"),
    ):
        draft.add_argument(f"--{name}", type=kind, help=words, required=name == "updates")
    draft.add_argument("--dry-run", action="store_true", help="print settings and sizes, load and fetch nothing")

    publish = commands.add_parser("publish", help="upload what a Hugging Face Space needs of this repository")
    publish.set_defaults(run=run_publish)
    publish.add_argument("--space", required=True, metavar="OWNER/NAME")
    publish.add_argument("--dry-run", action="store_true", help="list and check, upload nothing")
    return top


def run_compare(options: argparse.Namespace) -> None:
    from aig.portraits import serving
    from aig.runs import export
    from aig.runs.engine import Engine
    from aig.runs.request import Request

    given = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(Request)}
    request = Request(**{name: value for name, value in given.items() if value is not None})
    if options.out and not options.out.absolute().parent.is_dir():
        raise ValueError(f"There is no folder {str(options.out.parent)!r} to write {options.out.name!r} into.")
    engine = Engine(serving.load)
    try:
        unknown = engine.facts(request.model).unknown_words(request.prompt)
        if unknown:
            print(f"The model does not know: {', '.join(unknown)}", file=sys.stderr)
        for update in engine.stream(request):
            print(f"\rstep {update.step} of {update.plan.steps}", end="", file=sys.stderr, flush=True)
        print(f"\r{update.seconds:.1f} s, {update.rows} model evaluations", file=sys.stderr)
    finally:
        engine.close()
    scores = update.scores
    assert scores is not None  # the last update has them
    if options.out:
        export.write(options.out, export.png(update))
    if options.json:
        print(json.dumps({"request": dataclasses.asdict(request), "rows": update.rows, **scores.to_json()}))
    else:
        print(scores.table())


def run_schedules(options: argparse.Namespace) -> None:
    if not 1 <= options.steps <= 100:
        raise ValueError(f"The number of steps must be a whole number from 1 to 100, not {options.steps}.")
    for name in schedules.PRESETS:
        shares = schedules.shares(name, options.steps)
        print(f"{name:16} " + " ".join(f"{share:.2f}" for share in shares))


def run_columns(options: argparse.Namespace) -> None:
    print("Model evaluations are per image at T steps with guidance; steps that another column takes too cost nothing.\n")
    for kind in columns.KINDS.values():
        print(f"{kind.form}  ({kind.choices})\n    {kind.rule}\n    costs {kind.cost}; {kind.source}; e.g. {', '.join(kind.examples)}")


def run_fetch(options: argparse.Namespace) -> None:
    from aig.published import downloads, presets

    preset = presets.load(options.preset)
    names = [tuned.name for tuned in preset.tuned]
    if unknown := [name for name in options.tuned if name not in names]:
        raise ValueError(f"{preset.title} has no tuned weights {unknown[0]!r}; choose among: {', '.join(names) or 'none'}.")
    for source in (preset, *(tuned for tuned in preset.tuned if tuned.name in (options.tuned or names))):
        print(f"{source.repo}: licence {source.licence}, {'pinned' if source.pinned else 'not pinned'}")
        for event in downloads.apart(source, only_plan=options.plan):
            if "plan" in event:
                print(event["plan"], flush=True)
            elif "done" in event:
                print(f"\r{event['done'] / 1e6:,.0f} of {event['total'] / 1e6:,.0f} MB", end="", file=sys.stderr, flush=True)
            else:
                print(f"\n{event['folder']}")


def run_replay(options: argparse.Namespace) -> None:
    from aig.portraits import serving
    from aig.runs import export, replay

    replay.FOLDER.mkdir(exist_ok=True)
    model = serving.load()
    for prompt in replay.EXAMPLES:
        updates, path = replay.record(lambda: model, replay.opening(model.facts, prompt)), replay.place(prompt)
        content = replay.dump(updates, replay.digest())
        export.write(path, content.encode())
        print(f"{path.name}: {len(content):,} bytes")
        if prompt == replay.EXAMPLES[0]:
            export.write(replay.MOVING, export.moving(updates))


def run_draft(options: argparse.Namespace) -> None:
    os.environ["HF_HUB_OFFLINE"] = "0"  # before huggingface_hub is imported: model and reward are fetched where need be
    from aig.published import downloads, draft, draft_settings, presets

    given = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(draft_settings.DraftSettings)}
    prompts = [line.strip() for line in options.prompts.read_text().splitlines() if line.strip()]
    if Path(options.model).is_dir():
        folder, base, licence = Path(options.model), Path(options.model).resolve().name, ""
        pipeline = draft_settings.pipeline_of(folder)
    else:
        preset = presets.load(options.model)
        folder, base, licence, pipeline = downloads.located(preset), preset.repo, preset.licence, preset.pipeline
    if given["batch"] is None and pipeline == "StableDiffusionPipeline":
        given["batch"] = 64  # as the authors
    settings = draft_settings.DraftSettings(**{name: value for name, value in given.items() if value is not None})
    if options.dry_run:
        print(draft.outline(folder, pipeline, prompts, settings))
        if folder is None:
            print(f"{base} is not on this machine; a run fetches it first, about {preset.download:g} GB.")
        return

    import torch

    from aig.published import pipelines, rewards

    quiet()
    place = "cuda" if torch.cuda.is_available() else "cpu"
    reward = rewards.load(options.reward, options.reward_folder, device=place)
    for event in downloads.apart(preset) if folder is None else ():
        if "done" in event:
            there = f"{event['done'] / 1e9:.2f} of {event['total'] / 1e9:.2f} GB"
            print(f"\r{base}: {there}", end="", file=sys.stderr, flush=True)
        folder = Path(event["folder"]) if "folder" in event else folder
    assert folder is not None  # the last event of a download names it
    pipe = pipelines.load(folder, pipeline, device=place)
    draft_settings.authors_sampler(pipe)
    for row in draft.draft(pipe, reward, prompts, settings, out=options.out):
        shown = ", ".join(f"{name} {row[name]:.4g}" for name in ("reward", "gap", "loss"))
        print(f"\rupdate {row['step']} of {row['steps']}: {shown}", end="", file=sys.stderr, flush=True)
    (options.out / "README.md").write_text(draft_settings.card(options.out, base=base, licence=licence, reward=options.reward))
    print(f"\n{options.out / draft.FILE}", file=sys.stderr)


def run_publish(options: argparse.Namespace) -> None:
    os.environ["HF_HUB_OFFLINE"] = "0"  # before huggingface_hub is imported: this command means to talk to the Hub
    from aig import publish

    root = ASSETS.parent
    plan = publish.plan(root, options.space)
    print(plan.table())
    for problem in plan.problems:
        print(problem, file=sys.stderr)
    if plan.problems:
        raise ValueError(f"{len(plan.problems)} problems; nothing was uploaded.")
    if not options.dry_run:
        print(publish.upload(plan, root))


if __name__ == "__main__":
    sys.exit(main())
