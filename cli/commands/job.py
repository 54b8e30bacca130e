"""`adapterhub job`: work that the server does beside its answers."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from adapterhub.cli import views
from adapterhub.cli.options import AsJson, connect, examples, group, wait
from adapterhub.cli.output import show_json, show_json_lines, show_table

job = group("job", "List, show, watch and cancel jobs.")

JobId = Annotated[str, typer.Argument(help="The job's id, as `job list` prints it.")]


def join(app: typer.Typer) -> None:
    app.add_typer(job)


@job.command("list", epilog=examples("job list", "job list --state running --json"))
def list_jobs(
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed or cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most jobs to list.")] = 30,
    as_json: AsJson = False,
) -> None:
    """List your jobs, newest first; an administrator sees everybody's."""
    found = connect(ctx).get("/api/jobs", state=state, limit=limit)["items"]
    if as_json:
        show_json_lines(found)
    else:
        show_table(views.JOB_COLUMNS, map(views.job_row, found), numeric=("progress",))


@job.command(epilog=examples("job show JOB"))
def show(ctx: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    found = connect(ctx).get(_path(job_id))
    if as_json:
        show_json(found)
    else:
        views.show_job(found)


@job.command(epilog=examples("job watch JOB"))
def watch(ctx: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Wait for a job and end as it ends: 0 when it succeeded."""
    client = connect(ctx)
    found = client.get(_path(job_id))
    wait(client, found, found["kind"])
    show(ctx, job_id, as_json)


@job.command(epilog=examples("job cancel JOB"))
def cancel(ctx: typer.Context, job_id: JobId, as_json: AsJson = False) -> None:
    """Cancel a job: at once while it waits, soon when it runs."""
    found = connect(ctx).post(_path(job_id) + "/cancel")
    if as_json:
        show_json(found)
    else:
        views.show_job(found)


def _path(job_id: str) -> str:
    return "/api/jobs/" + quote(job_id, safe="")
