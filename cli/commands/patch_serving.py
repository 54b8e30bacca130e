"""`adapterhub patch serveable` and `patch canary`: what an engine outside makes of a patch, told and measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli.commands.patch import patch
from adapterhub.cli.errors import REFUSED, Declined, Missing
from adapterhub.cli.options import MEMORY, AsJson, bytes_of, examples
from adapterhub.cli.output import say, show_fields, show_json, show_table


def join(app: typer.Typer) -> None:
    """The commands belong to `patch`, which is joined already."""


@patch.command(
    epilog=examples(
        "patch serveable ./my-lora --engine vllm@0.33.0 --base ./base",
        "patch serveable ./my-lora --engine sglang --base ./base --out ./for-sglang",
        "patch serveable ./my-lora --engine gguf --base ./base --json",
    )
)
def serveable(
    source: Annotated[Path, typer.Argument(metavar="PATCH", help="Folder of the patch.")],
    engine: Annotated[str, typer.Option(help="vllm@VERSION, sglang@VERSION or gguf; default version: the tested one.")],
    base: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the patch's base.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the adapter that the engine applies whole.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say tensor by tensor what an engine applies of a patch; exit code 4 where it does not serve all of it."""
    from adapterhub.cli import served

    if not source.is_dir():
        raise Missing(f"{source}: no such folder; name the patch's folder")
    try:
        found = served.serveable(source, engine, base=base, out=out)
    except FileExistsError as error:
        raise Declined(str(error)) from error
    if as_json:
        show_json(found)
    else:
        rows = ((one["tensor"], one["verdict"], one["as_is"], one["why"]) for one in found["tensors"])
        show_table(("tensor", "verdict", "as it is", "why"), rows)
        for doubt in found["doubts"]:
            say(f"note: {doubt}")
        say(_sentence(found), to_stdout=True)
        if "written" in found:
            say(f"{out}: the same deltas, largest error {found['written']['largest_error']:.1e}")
    if found["verdict"] == "not":
        raise typer.Exit(REFUSED)


@patch.command(
    epilog=examples(
        "patch canary ./my-lora --base ./base --url http://127.0.0.1:8000/v1 --model my-lora",
        "patch canary ./my-lora --base ./base --url https://gpu.example/v1 --model my-lora --api-key-env KEY",
    )
)
def canary(
    source: Annotated[Path, typer.Argument(metavar="PATCH", help="Folder of the patch that should be served.")],
    base: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Folder of its base, with the tokenizer.")],
    url: Annotated[str, typer.Option(help="The engine's OpenAI-compatible API, which ends with /v1.")],
    model: Annotated[str, typer.Option(help="What the engine calls the adapter.")],
    base_model: Annotated[
        str | None, typer.Option(help="What it calls the base; default: the parent that it names.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the engine's key.")] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A prompt to ask with; may be repeated; default: eight of our own.")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Mean difference of log probabilities that counts as none, in nats.")
    ] = 0.1,
    memory: Annotated[str, typer.Option(help="What folding may use, such as 2GiB.")] = MEMORY,
    as_json: AsJson = False,
) -> None:
    """Ask a live engine whether it serves a patch, and not its base; exit code 4 unless it does."""
    from adapterhub.cli import served

    if not source.is_dir():
        raise Missing(f"{source}: no such folder; name the patch's folder")
    found = served.canary(
        source,
        base,
        url,
        model,
        base_model=base_model,
        api_key_env=api_key_env,
        prompts=prompt or (),
        tolerance=tolerance,
        memory_bytes=bytes_of(memory),
    )
    if as_json:
        show_json(found)
    else:
        say(f"{model}: {found['verdict']}: {found['why']}", to_stdout=True)
        show_fields([(title, _nats(found[key])) for key, title in _NUMBERS.items()])
    if found["verdict"] != "served":
        raise typer.Exit(REFUSED)


_NUMBERS = {
    "effect": "what the patch changes, here",
    "to_patched": "engine's adapter to ours with the patch",
    "to_base": "engine's adapter to our base",
    "to_its_base": "engine's adapter to its base",
    "base_to_base": "engine's base to ours",
    "tolerance": "tolerance",
}


def _nats(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f} nats"


def _sentence(found: dict[str, object]) -> str:
    """The verdict over all tensors, in words."""
    does = {
        "applies": "applies it",
        "refuses": "refuses it",
        "ignores": "ignores parts of it and tells nobody",
        "misapplies": "serves something else and tells nobody",
    }
    name = f"{found['engine']}@{found['version']}" if found["version"] else str(found["engine"])
    started = found["options"]
    options = f"; start it with {' '.join(started)}" if isinstance(started, tuple) and started else ""
    says = {"as is": "served as is", "after a rewrite": "served after a rewrite (--out)", "not": "not served"}
    return f"{name}: {says[str(found['verdict'])]}; as it is, the engine {does[str(found['as_is'])]}{options}"
