"""`adapterhub merge tune-weights` and `merge curve`: what weights are best, and what a strength gains and costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapterhub.cli import views
from adapterhub.cli.commands.merge import merge
from adapterhub.cli.errors import Misused
from adapterhub.cli.options import MEMORY, AsJson, bytes_of, connect, examples, wait
from adapterhub.cli.output import say, show_json

if TYPE_CHECKING:
    from adapterhub.cli.tuning import Judge
    from adapterhub.merging.tuning.search import Trial

LADDER = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"

Folders = Annotated[
    list[str] | None,
    typer.Option("--input", help="NAME=FOLDER, to work on this machine; may be repeated."),
]
Device = Annotated[str, typer.Option(help="Where candidates are computed: cpu, cuda.")]
Memory = Annotated[str, typer.Option(help="Memory a step may use, such as 512MiB or 8GB.")]


def join(app: typer.Typer) -> None:
    """The commands belong to `merge`, which is joined already."""


@merge.command(
    "tune-weights",
    epilog=examples(
        'merge tune-weights "demo/base + 0.5*demo/code + 0.5*demo/licences" --task held-out.jsonl',
        'merge tune-weights "base + 0.5*code + 0.5*law" --task held-out.jsonl --input base=./base --input code=./code '
        "--input law=./law --journal search.jsonl",
        'merge tune-weights "ties(base; a, b, density=0.3)" --task held-out.jsonl --param density=0.1:1 --input ...',
        'merge tune-weights "base + a" --command "python score.py {folder}" --larger-is-better --input ...',
    ),
)
def tune_weights(
    ctx: typer.Context,
    expression: Annotated[str, typer.Argument(help="The recipe; its own weights are where the search begins.")],
    task: Annotated[
        Path | None,
        typer.Option(help="Held-out JSON lines: text; prompt, completion; prompt, choices, answer; text, label."),
    ] = None,
    entropy: Annotated[bool, typer.Option("--entropy", help="With --task of texts alone: minimise entropy.")] = False,
    command: Annotated[
        str | None,
        typer.Option(help="Reads a candidate as JSON, prints a number; {folder} in it is the merged model."),
    ] = None,
    judge: Annotated[str | None, typer.Option(help="URL that candidates are posted to; answers a number.")] = None,
    allow_network: Annotated[bool, typer.Option("--allow-network", help="Let --judge be reached from here.")] = False,
    larger_is_better: Annotated[
        bool, typer.Option("--larger-is-better", help="Of what --command or --judge say.")
    ] = False,
    parameters: Annotated[
        list[str] | None,
        typer.Option("--param", help="NAME or NAME=LOW:HIGH to search too; may be repeated."),
    ] = None,
    weights: Annotated[str, typer.Option(help="LOW:HIGH of the weights.")] = "-1.5:1.5",
    optimiser: Annotated[str, typer.Option(help="cma, or spsa: two forward passes a step.")] = "cma",
    evaluations: Annotated[int, typer.Option(min=1, help="Most candidates that are scored.")] = 40,
    seconds: Annotated[float | None, typer.Option(help="Most seconds of this run.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same candidates.")] = 0,
    penalty: Annotated[float, typer.Option(min=0, help="Factor of mean |weight|; LoraHub takes 0.05.")] = 0.0,
    journal: Annotated[Path | None, typer.Option(help="File of all trials; a search goes on from it.")] = None,
    inputs: Folders = None,
    device: Device = "cpu",
    memory: Memory = MEMORY,
    as_json: AsJson = False,
) -> None:
    """Search the weights of a recipe for the best score, without gradients."""
    from adapterhub.cli import local, tuning
    from adapterhub.merging.recipes.expression import parse
    from adapterhub.merging.tuning.search import Course

    bounds, searched = tuning.bounds(weights, "--weights"), tuning.named_bounds(parameters or [])
    judged = _judge(task, entropy, command, judge, allow_network or not inputs, larger_is_better)
    course = Course(optimiser, seed, evaluations, penalty, judged.is_larger_better)
    if inputs:
        result = tuning.tune(
            expression,
            tuning.Workshop(
                local.inputs_of(parse(expression).references(), local.named_folders(inputs)), device, bytes_of(memory)
            ),
            judged,
            course,
            weights=bounds,
            parameters=searched,
            seconds=seconds,
            journal=journal,
            told=lambda trial, best: _told(trial, best, evaluations),
        )
    else:
        if command or journal:
            raise Misused("--command and --journal are of searches on this machine: name folders with --input")
        client = connect(ctx)
        job = client.post("/api/tunings", tuning.asked(expression, judged, course, bounds, searched, seconds))
        result = wait(client, job, "search")
    if as_json:
        show_json(result)
    else:
        views.show_tuning(result)


@merge.command(
    epilog=examples(
        "merge curve base code --gain code.jsonl --keep general.jsonl --input base=./base --input code=./code",
        'merge curve base "0.5*a + 0.5*b" --gain a.jsonl --keep general.jsonl --ladder 0.25,0.5,1,1.5 --input ...',
    )
)
def curve(
    base: Annotated[str, typer.Argument(help="The base.")],
    patch: Annotated[str, typer.Argument(help="A patch, a tuned model, or a sum of them.")],
    gain: Annotated[Path, typer.Option(help="Held-out examples of what the patch is for; as --task of tune-weights.")],
    keep: Annotated[Path, typer.Option(help="Held-out examples of what must not be lost.")],
    ladder: Annotated[str, typer.Option(help="Strengths above 0, with commas.")] = LADDER,
    inputs: Folders = None,
    device: Device = "cpu",
    memory: Memory = MEMORY,
    as_json: AsJson = False,
) -> None:
    """Show what a patch gains and costs at a ladder of strengths, and the recipe at the knee."""
    from adapterhub.cli import local, tuning
    from adapterhub.merging.recipes.expression import parse
    from adapterhub.merging.recipes.nodes import Ref

    names = {Ref.of(base): None, **dict.fromkeys(parse(patch).references())}
    found_inputs = local.inputs_of(names, local.named_folders(inputs or []))
    result = tuning.curve(
        base,
        patch,
        tuning.Workshop(found_inputs, device, bytes_of(memory)),
        tuning.examples(gain),
        tuning.examples(keep),
        tuning.ladder(ladder),
        lambda strength, *scores: say(f"{strength:g}  gain {scores[0]:.6g}  keep {scores[1]:.6g}"),
    )
    if as_json:
        show_json(result)
    else:
        views.show_curve(result)


def _judge(
    task: Path | None,
    entropy: bool,
    command: str | None,
    url: str | None,
    allow_network: bool,
    larger_is_better: bool,
) -> Judge:
    from adapterhub.cli import tuning

    if sum(one is not None for one in (task, command, url)) != 1:
        raise Misused("say what scores a candidate: one of --task FILE, --command COMMAND, --judge URL")
    if url is not None and not allow_network:
        raise Misused(f"--judge {url}: every candidate would be sent there from this machine; add --allow-network")
    if task is None:
        if entropy:
            raise Misused("--entropy is measured on the texts of --task FILE")
        return tuning.Judge(command=command, url=url, is_larger_better=larger_is_better)
    if larger_is_better:
        raise Misused("--larger-is-better is of --command or --judge; what --task measures says it by itself")
    found = tuning.examples(task, measure="entropy" if entropy else None)
    return tuning.Judge(examples=found, is_larger_better=found.is_larger_better)


def _told(trial: Trial, best: Trial, evaluations: int) -> None:
    at = f"{trial.number + 1}/{evaluations}"
    if trial.score is None:
        say(f"{at}  refused: {trial.refused}")
    else:
        say(f"{at}  {trial.score:.6g}  best {best.score:.6g}  {best.expression}")
