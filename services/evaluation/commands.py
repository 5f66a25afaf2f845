"""``superlink eval``, ``superlink bench`` and ``superlink scenes``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from pydantic import BaseModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.evaluation.adaptation.commands import (
    judge_conversations_command,
    judge_domain_command,
    study_replay_command,
)
from services.evaluation.distillation.commands import evaluate_distillation_command
from services.evaluation.latency import measure_latency
from services.evaluation.report_tables import latency_tables, scenes_table
from services.evaluation.resolution.commands import evaluate_resolution_command, make_shapes_command
from services.evaluation.runs_table import RunsTableError, runs_table
from services.evaluation.scenes_evaluation import evaluate_scenes, write_failures
from services.evaluation.scenes_set import SceneSet, SceneSetError, load_scene_set
from services.evaluation.towers.commands import evaluate_towers_command
from superlink.cli.console import fail, notes, output
from superlink.cli.options import (
    DEFAULT_PROFILE,
    URL_VARIABLE,
    ApiKeyOption,
    ProfileOption,
    SetOption,
    read_profile,
)
from superlink.cli.up import stack_for_one_call
from superlink.client import Client

DEFAULT_SCENES = Path(__file__).resolve().parents[2] / "tests" / "data" / "scenes"

evaluate = typer.Typer(help="Measure how good answers and training runs are.", no_args_is_help=True)
bench = typer.Typer(help="Measure how fast a running stack is.", no_args_is_help=True)
scenes = typer.Typer(help="Make and look at sets of scenes to evaluate on.", no_args_is_help=True)

ScenesOption = Annotated[Path, typer.Option("--scenes", help="Folder of a scene set, see docs/scenes.md.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
StackUrlOption = Annotated[
    str | None,
    typer.Option("--url", envvar=URL_VARIABLE, help="A gateway that runs already. Default: start a stack for it."),
]


@bench.callback()
def _bench() -> None:
    """Keep ``latency`` a command of its own while it is the only one."""


@evaluate.command("scenes")
def evaluate_scenes_command(
    scene_folder: ScenesOption = DEFAULT_SCENES,
    url: StackUrlOption = None,
    api_key: ApiKeyOption = None,
    json_file: JsonOption = None,
    failures: Annotated[Path | None, typer.Option(help="List every wrong answer in this text file.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests in flight at a time.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts.")] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Ask every prompt of a scene set and judge the answers; docs/evaluation.md says how.

    The model writes its own answers. Requests for categories are also sent to /v1/detect (teacher-forced).

    Example: superlink eval scenes --json figures.json --failures wrong.txt
    """
    scene_set = _load(scene_folder)
    if limit:
        scene_set.prompts = scene_set.prompts[:limit]
    with (
        _gateway(url, profile, settings) as address,
        Client(address, api_key=api_key) as client,
        _progress() as progress,
    ):
        task = progress.add_task("Asking", total=len(scene_set.prompts))
        report, outcomes = evaluate_scenes(
            client, scene_set, concurrency, lambda done: progress.update(task, completed=done)
        )
    output.print(scenes_table(report))
    if failures:
        with failures.open("w", encoding="utf-8") as file:
            count = write_failures(scene_set, outcomes, file)
        notes.print(f"{count} of {len(outcomes)} prompts are listed in {failures}")
    _write_json(report, json_file)


@evaluate.command("runs")
def runs_table_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of training runs, such as runs/tiny_chat.")],
    figure: Annotated[
        list[str] | None, typer.Option(help="A column; repeat for several. Default: every figure that all runs have.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=1, help="The evaluation after so many steps. Default: each run's last.")
    ] = None,
    chart: Annotated[Path | None, typer.Option(help="Draw them too, into this PNG or SVG.")] = None,
) -> None:
    """Put the evaluations of training runs side by side, as a Markdown table; seeds of one recipe share a row.

    Example: superlink eval runs runs/ablations/queries_* --figure ap50 --figure oks_ap50
    """
    try:
        output.print(runs_table(runs, figure or (), step), markup=False, highlight=False)
        if chart:
            from services.evaluation.runs_chart import draw_runs

            draw_runs(chart, runs, figure or (), step)
            notes.print(f"Wrote {chart}")
    except RunsTableError as error:
        fail(str(error))


@evaluate.command("focus")
def draw_over_focus_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of the stage classification.")],
    out: Annotated[Path, typer.Option(help="Where to write the PNG or SVG.")] = Path("focus.png"),
) -> None:
    """Draw where gradients go in De-focus networks and what they attend to, a row a run.

    Example: superlink eval focus runs/defocus/focus_causal runs/defocus/focus_pooled --out focus.png
    """
    from services.evaluation.over_focus_maps import draw_over_focus

    draw_over_focus(out, runs)
    output.print(f"Wrote {out}")


evaluate.command("domain")(judge_domain_command)
evaluate.command("conversations")(judge_conversations_command)
evaluate.command("replay")(study_replay_command)
evaluate.command("resolution")(evaluate_resolution_command)
evaluate.command("distillation")(evaluate_distillation_command)
evaluate.command("towers")(evaluate_towers_command)
scenes.command("shapes")(make_shapes_command)


@bench.command("latency")
def measure_latency_command(
    scene_folder: ScenesOption = DEFAULT_SCENES,
    url: StackUrlOption = None,
    api_key: ApiKeyOption = None,
    json_file: JsonOption = None,
    requests: Annotated[int, typer.Option(min=1, help="Measured requests of every kind.")] = 100,
    profile: ProfileOption = DEFAULT_PROFILE,
    settings: SetOption = None,
) -> None:
    """Send requests one after another and show what a user waits, and for whom.

    Example: superlink bench latency --requests 50 --json latency.json
    """
    scene_set = _load(scene_folder)
    with (
        _gateway(url, profile, settings) as address,
        Client(address, api_key=api_key) as client,
        _progress() as progress,
    ):
        tasks: dict[str, object] = {}

        def show(kind: str, done: int) -> None:
            if kind not in tasks:
                tasks[kind] = progress.add_task(kind, total=requests)
            progress.update(tasks[kind], completed=done)  # type: ignore[arg-type]

        report = measure_latency(client, scene_set, requests, show)
    for table in latency_tables(report):
        output.print(table)
    _write_json(report, json_file)


@scenes.command("make")
def make_scenes_command(
    out: Annotated[Path, typer.Option(help="A new folder for the set.")],
    count: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 120,
    seed_start: Annotated[
        int | None, typer.Option(min=0, help="Seed of the first scene. Default: where evaluation seeds begin.")
    ] = None,
    style: Annotated[
        list[str] | None, typer.Option(help="Drawing style; repeat for several. Default: those of training.")
    ] = None,
    sprites: Annotated[Path | None, typer.Option(help="File made by `make sprites`.", show_default="sprites/")] = None,
) -> None:
    """Compose scenes and write them with annotations and prompts. The same arguments give the same set.

    Example: superlink scenes make --out held_out --style fluent --style blobmoji --count 60
    """
    # Composing needs the trainer's packages, evaluating does not.
    from services.evaluation.scenes_making import make_scene_set
    from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer, ComposerOptions
    from services.trainer.scenes.sprites import TRAINING_STYLES

    art = _art(sprites)
    unknown = sorted(set(style or ()) - set(art))
    if unknown:
        fail(f"No style {', '.join(unknown)}. There are: {', '.join(sorted(art))}.")
    composers = [Composer(art, ComposerOptions(styles=(name,))) for name in style or TRAINING_STYLES]
    with _progress() as progress:
        task = progress.add_task("Composing", total=count)
        try:
            made = make_scene_set(
                out,
                composers,
                count,
                EVALUATION_SEED_START if seed_start is None else seed_start,
                lambda done: progress.update(task, completed=done),
            )
        except SceneSetError as error:
            fail(str(error))
    output.print(f"{out}: {len(made.images)} scenes, {len(made.annotations)} things, {len(made.prompts)} prompts")


@scenes.command("extend")
def extend_scenes_command(
    scene_folder: Annotated[Path, typer.Argument(help="Folder of a scene set.")],
    sprites: Annotated[Path | None, typer.Option(help="File made by `make sprites`.", show_default="sprites/")] = None,
) -> None:
    """Add what a set lacks of prompts for masks, several tools, edits, drawings and poses; what is there stays.

    Example: superlink scenes extend held_out
    """
    from services.evaluation.set_extension import extend_scene_set
    from services.evaluation.tools_making import tool_parts

    before = _load(scene_folder)
    after = extend_scene_set(before, tool_parts(_art(sprites)))
    added = len(after.prompts) - len(before.prompts)
    output.print(f"{scene_folder}: {len(after.images) - len(before.images)} scenes and {added} prompts more")


@scenes.command("sprites")
def make_sprites_command(
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="sprites/sprites.safetensors")
    ] = None,
) -> None:
    """Fetch the emoji art with npm and rasterise it: once, before training or making scenes.

    Example: superlink scenes sprites
    """
    from services.trainer.scenes.sprites import SpriteError, default_sprite_file, make_sprites

    file = out or default_sprite_file()
    try:
        with notes.status("Fetching emoji art"):
            make_sprites(file, lambda line: output.print(line, highlight=False))
    except SpriteError as error:
        fail(str(error))
    output.print(f"Wrote {file}")


@scenes.command("vocabularies")
def draw_vocabularies_command(
    detector: Annotated[Path, typer.Option(help="Weights of a detector, whose rows the segmenter shares.")],
    out: Annotated[Path, typer.Option(help="Where to write a folder for each decoder.")] = Path("runs/vocabularies"),
    seed: Annotated[int, typer.Option(help="The same seed draws the same rows.")] = 20261123,
) -> None:
    """Draw the rows that decoders are asked in until an MLLM speaks to them, and that the MLLM learns meanwhile.

    Example: superlink scenes vocabularies --detector weights/tiny/detection
    """
    from services.runtime.weights import WeightsError
    from services.trainer.vocabularies import draw_vocabularies

    try:
        drawn = draw_vocabularies(out, detector, seed)
    except WeightsError as error:
        fail(str(error))
    output.print(f"{out}: " + ", ".join(f"{len(rows)} rows for {decoder}" for decoder, rows in drawn.items()))


@scenes.command("show")
def show_scenes_command(
    scene_folder: Annotated[Path, typer.Argument(help="Folder of a scene set.")] = DEFAULT_SCENES,
    out: Annotated[Path, typer.Option(help="Where to write the PNG.")] = Path("scenes.png"),
    columns: Annotated[int, typer.Option(min=1, help="Images in a row.")] = 8,
    limit: Annotated[int, typer.Option(min=1, help="At most so many images.")] = 48,
) -> None:
    """Draw the images of a set with their boxes on one sheet.

    Example: superlink scenes show tests/data/scenes --out sheet.png
    """
    from services.evaluation.contact_sheet import contact_sheet

    contact_sheet(_load(scene_folder), columns, limit).save(out)
    output.print(f"Wrote {out}")


@scenes.command("figures")
def show_figures_command(
    out: Annotated[Path, typer.Option(help="Where to write the PNG.")] = Path("figures.png"),
    kind: Annotated[
        list[str] | None, typer.Option(help="person or deer; repeat for several. Default: all, by turns.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=400, help="How many figures.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same figures.")] = 0,
    columns: Annotated[int, typer.Option(min=1, help="Figures in a row.")] = 8,
) -> None:
    """Draw articulated figures with their keypoints on one sheet: left red, right blue, hidden ones small.

    Example: superlink scenes figures --kind deer --count 16 --out deer.png
    """
    from services.evaluation.figure_sheet import figure_sheet
    from services.trainer.scenes.skeletons import SKELETONS

    known = {skeleton.key: skeleton for skeleton in SKELETONS}
    unknown = sorted(set(kind or ()) - set(known))
    if unknown:
        fail(f"No kind {', '.join(unknown)}. There are: {', '.join(sorted(known))}.")
    figure_sheet([known[name] for name in kind or known], count, seed, columns).save(out)
    output.print(f"Wrote {out}")


@scenes.command("edits")
def show_edits_command(
    out: Annotated[Path, typer.Option(help="Where to write the PNG.")] = Path("edits.png"),
    count: Annotated[int, typer.Option(min=1, max=200, help="How many edits.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same edits.")] = 0,
    sprites: Annotated[Path | None, typer.Option(help="File made by `make sprites`.", show_default="sprites/")] = None,
) -> None:
    """Draw edit pairs on one sheet: an instruction, the scene before and exactly what it should be afterwards.

    Example: superlink scenes edits --count 20 --out edits.png
    """
    from services.evaluation.edit_sheet import edit_sheet
    from services.trainer.scenes.composer import Composer

    edit_sheet(Composer(_art(sprites)), count, seed).save(out)
    output.print(f"Wrote {out}")


@contextmanager
def _gateway(url: str | None, profile: str, settings: list[str] | None) -> Iterator[str]:
    """The address of the gateway to ask: ``url``, or a stack that lives as long as the block."""
    if url:
        yield url
        return
    with stack_for_one_call(read_profile(profile, settings)) as address:
        yield address


def _art(file: Path | None) -> Mapping[str, NDArray[np.uint8]]:
    from services.trainer.scenes.sprites import SpriteError, load_sprites

    try:
        return load_sprites(file)
    except SpriteError as error:
        fail(str(error))


def _load(folder: Path) -> SceneSet:
    try:
        return load_scene_set(folder)
    except SceneSetError as error:
        fail(f"{error} Make a set with: superlink scenes make --out FOLDER")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=notes
    )


def _write_json(report: BaseModel, file: Path | None) -> None:
    if file:
        file.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")
        notes.print(f"Wrote {file}")
