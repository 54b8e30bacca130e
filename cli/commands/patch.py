"""`adapterhub patch`: patches and models, here and on the server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from adapterhub.cli import views
from adapterhub.cli.client import repo_and_folder, repo_path, split_revision
from adapterhub.cli.errors import REFUSED, Declined, Missing, Misused
from adapterhub.cli.options import AsJson, connect, examples, group
from adapterhub.cli.output import say, show_json, show_json_lines, show_table

patch = group("patch", "Push, pull, list and inspect patches and models.")


def join(app: typer.Typer) -> None:
    app.add_typer(patch)


@patch.command(epilog=examples("patch push ./my-lora demo/my-lora", "patch push ./my-lora --private"))
def push(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder whose files to push.")],
    repo: Annotated[str | None, typer.Argument(help="namespace/name; default: YOU/FOLDER.")] = None,
    branch: Annotated[str | None, typer.Option(help="Branch, made where there is none; default: main.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Hide a repository that is made now.")] = False,
    message: Annotated[str | None, typer.Option(help="Summary of the commit.")] = None,
    as_json: AsJson = False,
) -> None:
    """Push a folder and say what it was recognised as."""
    client = connect(ctx)
    repo_id = repo or f"{client.get('/api/whoami-v2')['name']}/{folder.resolve().name}"
    path = repo_path(repo_id)
    url = client.push_folder(folder, repo_id, private=private, branch=branch, message=message)
    view = client.get(path, revision=branch)
    if as_json:
        show_json({"repo": view["id"], "commit": view["commit"], "url": url, "kind": view["kind"]})
        return
    say(f"{view['id']}: {views.sentence(view)}", to_stdout=True)
    for problem in views.problems(view):
        say(f"problem: {problem}")
    say(f"{client.endpoint}/{view['id']}")


@patch.command(epilog=examples("patch pull demo/code", "patch pull demo/code@v1 ./code"))
def pull(
    ctx: typer.Context,
    repo: Annotated[str, typer.Argument(help="namespace/name, or namespace/name@revision.")],
    folder: Annotated[Path | None, typer.Argument(help="Where to put the files; default: ./NAME.")] = None,
) -> None:
    """Pull a repository into a folder, and print where it is."""
    repo_id, revision = split_revision(repo)
    repo_path(repo_id)
    found = connect(ctx).pull(repo_id, folder or Path(repo_id.partition("/")[2]), revision)
    say(str(found), to_stdout=True)


@patch.command(
    "list",
    epilog=examples("patch list", "patch list code --kind lora --base demo/base", "patch list --within team/voices"),
)
def list_patches(
    ctx: typer.Context,
    query: Annotated[str, typer.Argument(help="Words to search for.", show_default=False)] = "",
    kind: Annotated[str, typer.Option(help="lora, sparse, mask, model, ...", show_default=False)] = "",
    base: Annotated[str, typer.Option(help="Only patches of that base.", show_default=False)] = "",
    licence: Annotated[str, typer.Option(help="Licence, as in the card.", show_default=False)] = "",
    task: Annotated[str, typer.Option(help="Task, as in the card.", show_default=False)] = "",
    author: Annotated[str, typer.Option(help="User or organisation.", show_default=False)] = "",
    tag: Annotated[list[str] | None, typer.Option(help="Tag; may be repeated.")] = None,
    sort: Annotated[str, typer.Option(help="updated, created, downloads, size or name.")] = "updated",
    within: Annotated[str, typer.Option(help="List the patches in that repository.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, help="Most to list.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List repositories with what is in them, or the patches in one repository."""
    asked = {"kind": kind, "base": base, "licence": licence, "task": task, "author": author, "tag": tag, "sort": sort}
    path = "/api/patches"
    columns: Sequence[str] = views.LIST_COLUMNS
    row: Callable[[views.Json], Sequence[object]] = views.list_row
    if within:
        if base or licence or task or author or tag:
            raise Misused("--within: the patches of one repository are narrowed by words of their folder and --kind")
        repo_id, revision = split_revision(within)
        asked = {"kind": kind, "revision": revision}
        path, columns, row = repo_path(repo_id) + "/folders", views.FOLDER_COLUMNS, views.folder_row
    found = connect(ctx).items(path, limit, search=query, **asked)
    if as_json:
        show_json_lines(found)
    else:
        show_table(columns, map(row, found), numeric=("parameters", "size", "rank"))


@patch.command(
    epilog=examples(
        "patch show demo/code-lora", "patch show demo/code-lora@v1 --json", "patch show team/voices/speaker-17"
    )
)
def show(
    ctx: typer.Context,
    repo: Annotated[str, typer.Argument(help="namespace/name, namespace/name@revision, or a folder below it.")],
    as_json: AsJson = False,
) -> None:
    """Show all that is known of a repository, or of one patch in it: base, rank, targets, licence, problems."""
    name, revision = split_revision(repo)
    repo_id, folder = repo_and_folder(name)
    view = connect(ctx).get(repo_path(repo_id), revision=revision, path=folder)
    if as_json:
        show_json(view)
    else:
        views.show_repository(view)


@patch.command(
    epilog=examples(
        "patch inspect ./my-lora",
        "patch inspect adapter_model.safetensors --json",
        "patch inspect team/voices/speaker-17@v2",
    )
)
def inspect(
    ctx: typer.Context,
    what: Annotated[
        str, typer.Argument(help="A file or folder of this machine, else a repository, or a folder in one.")
    ],
    values: Annotated[
        bool, typer.Option("--values", help="Read every number too: NaN and infinity are problems.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what files are, local ones without a server; exit code 4 where there are problems."""
    from adapterhub.cli import local

    path = Path(what)
    if path.exists():
        found = local.inspect(path, reads_values=values)
    elif _is_path(what):
        raise Missing(f"{what}: no such file or folder")
    else:
        found = local.inspect_repository(connect(ctx), what, reads_values=values)
    if as_json:
        show_json_lines(found)
    elif found:
        for facts in found:
            views.show_facts(facts)
    if not found:
        raise Declined(f"{what}: no patch and no model that is known lies here; `adapterhub patch kinds` lists them")
    if any(facts["problems"] for facts in found):
        raise typer.Exit(REFUSED)


@patch.command(
    epilog=examples(
        "patch convert ./downloaded ./safe --to safetensors",
        "patch convert ./my-loha ./my-lora --to lora --base ./base",
        "patch convert ./my-lora ./for-llama-cpp --to gguf --base ./base",
        "patch convert ./llama-style ./phi3-style --to lora --layout fused --base ./phi3",
        "patch convert ./my-dora ./my-delta --to dense --base ./base",
    )
)
def convert(
    source: Annotated[Path, typer.Argument(help="Folder of the patch; of a pickle, the file will do.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: empty, or none yet.")],
    to: Annotated[
        str,
        typer.Option(
            help="lora, kohya, diffusers, gguf, dense; of pickles: safetensors; native for deltas of research code."
        ),
    ],
    base: Annotated[Path | None, typer.Option(exists=True, file_okay=False, help="Folder of the patch's base.")] = None,
    initial: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="The adapter before training, where training changed its base."
        ),
    ] = None,
    layout: Annotated[
        str | None,
        typer.Option(help="fused or split: q, k and v (gate and up) in one parameter, as --base has them, or apart."),
    ] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Of a graft mask: folder of the tuned model; --to native."),
    ] = None,
    graft: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Of a graft mask: JSON of its names, sigmoid_bias and density."),
    ] = None,
    positions: Annotated[
        str | None, typer.Option(help="Of pyreft's folders: where they act, all or as f7+l7; --to native.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a patch in another form on this machine, and say how exact it is."""
    from adapterhub.cli.local import convert as convert_here
    from adapterhub.cli.local import graft as graft_here
    from adapterhub.cli.local import reft as reft_here

    if not source.exists():
        raise Missing(f"{source}: no such file or folder")
    try:
        if tuned is not None and to == "native":
            found = graft_here(source, out, base=base, tuned=tuned, said=graft)
        elif positions is not None and to == "native":
            found = reft_here(source, out, base=base, positions=positions)
        else:
            found = convert_here(source, out, to, base=base, initial=initial, layout=layout)
    except FileExistsError as error:
        raise Declined(str(error)) from error
    if as_json:
        show_json(found)
    else:
        views.show_conversion(found)
    say(str(out))


@patch.command(
    epilog=examples(
        "patch extract ./base ./tuned ./my-patch --as lora:r=16", "patch extract ./base ./tuned ./exact --as xor"
    )
)
def extract(
    base: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the model before tuning.")],
    tuned: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the tuned model.")],
    out: Annotated[Path, typer.Argument(help="Folder for the patch.")],
    form: Annotated[
        str, typer.Option("--as", help="lora:r=16, lora:energy=0.9, sparse:density=0.01, mask, bitdelta, xor or dense.")
    ],
    as_json: AsJson = False,
) -> None:
    """Make a patch of the difference of two local models, and list its error by parameter."""
    from dataclasses import asdict

    from adapterhub.cli.local import extract as make

    rows, digest = make(base, tuned, form, out)
    if as_json:
        show_json_lines(map(asdict, rows))
    else:
        cells = ((r.site, r.term, r.rank or "", f"{r.norm:.4g}", f"{r.error:.2%}", r.size_bytes) for r in rows)
        columns = ("parameter", "term", "rank", "size of the delta", "error", "bytes")
        show_table(columns, cells, numeric=columns[2:])
    say(f"{out}: {len(rows)} parameters, {digest}")


@patch.command(epilog=examples("patch kinds", "patch kinds --json"))
def kinds(as_json: AsJson = False) -> None:
    """List the kinds of patch that are recognised, and what is done with each."""
    from adapterhub.cli.local import kinds as known

    rows = known()
    if as_json:
        show_json_lines(rows)
    else:
        columns = ("name", "family", "folds", "runs", "writes", "converts", "summary")
        headings = ("kind", "of", "folds", "runs", "writes", "converts to", "what it is")
        show_table(headings, ([_word(row[column]) for column in columns] for row in rows))


def _is_path(text: str) -> bool:
    """Whether a text can only mean a place on this machine, and no repository."""
    return text.startswith((".", "/", "~")) or "/" not in text


def _word(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return {True: "yes", False: "-"}[value] if isinstance(value, bool) else str(value)
