"""How what the server tells is laid out for a person: rows of lists, one repository, one job, one report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adapterhub.cli.output import say, show_fields, show_heading, show_table, show_text
from adapterhub.hub.web.wording import ago, bytes_short, count_short, plain, seconds_short

Json = Mapping[str, Any]

LIST_COLUMNS = ("repository", "kind", "base", "rank", "parameters", "size", "licence", "updated")
FOLDER_COLUMNS = ("folder", "kind", "base", "rank", "parameters", "size", "problems")
JOB_COLUMNS = ("job", "kind", "state", "progress", "created", "result")
RECIPE_COLUMNS = ("recipe", "version", "text", "by", "updated")
VERSION_COLUMNS = ("version", "text", "message", "digest", "by", "saved")
UNSEEN = "(names something that your token may not see)"

FITS = {
    "exact": "fits exactly",
    "same_arch": "same architecture, other weights than it was trained on: port it",
    "incompatible": "does not fit",
    "unknown": "fit unknown",
}


def list_row(item: Json) -> Sequence[object]:
    """One line of `patch list`."""
    base = item["base"] or {}
    name = item["id"] + (f"/{item['folders'][0]}" if len(item.get("folders") or ()) == 1 else "")
    return (
        name + (" (private)" if item["private"] else ""),
        item["kind"],
        base.get("repository") or base.get("name"),
        rank(item),
        count_short(item["parameter_count"]) if item["parameter_count"] else "",
        bytes_short(item["size_bytes"]),
        item["licence"],
        ago(item["updated_at"]),
    )


def folder_row(patch: Json) -> Sequence[object]:
    """One line of `patch list --within`."""
    known = patch["base"] or {}
    return (
        patch["path"] or ".",
        patch["kind"],
        known.get("repository") or known.get("name"),
        rank(patch),
        count_short(patch["parameter_count"]) if patch["parameter_count"] else "",
        bytes_short(patch["size_bytes"]),
        len(patch["problems"]) or "",
    )


def rank(facts: Json) -> str:
    """The rank of low-rank terms: "8", "4 to 16", "" without any."""
    low, high = facts.get("rank_min"), facts.get("rank_max")
    if low is None:
        return ""
    return str(low) if low == high else f"{low} to {high}"


def sentence(view: Json) -> str:
    """What a repository is, in a few words."""
    first = view["patches"][0] if view["patches"] else None
    if first is None or first["kind"] == "unknown":
        return f"{view['kind']}; {view['reason']}" if view["reason"] else str(view["kind"])
    parts = [first["kind"], f"rank {rank(first)}" if rank(first) else "", f"on {base(first)}" if first["base"] else ""]
    parts.append(f"{count_short(first['parameter_count'])} parameters, {bytes_short(first['size_bytes'])}")
    return ", ".join(filter(None, parts))


def base(patch: Json) -> str:
    """The base's name and whether the patch fits what it holds now."""
    known = patch["base"]
    if not known:
        return ""
    name = known.get("repository") or known.get("name") or "a base known by its fingerprint"
    return f"{name} ({FITS.get(known['fits'], known['fits'])})"


def problems(view: Json) -> list[str]:
    """What keeps the patches of a repository from being merged."""
    return [problem for patch in view["patches"] for problem in patch["problems"]]


def show_repository(view: Json) -> None:
    """Print all that is known of a repository."""
    show_text(view["id"])
    show_fields(
        [
            ("kind", view["kind"]),
            ("why", view["reason"] if view["kind"] == "unknown" else ""),
            ("commit", f"{view['commit'][:12]} ({view['revision']})"),
            ("updated", ago(view["updated_at"])),
            ("visible to", "members only" if view["private"] else "everybody"),
            ("files for", "members and those who were let in" if view.get("gated") else ""),
            ("disabled", "yes: only administrators see it" if view.get("disabled") else ""),
            ("likes", view.get("likes") or ""),
            ("licence", view["licence"]),
            ("library", view["library"]),
            ("task", view["pipeline_tag"]),
            ("tags", plain(view["tags"])),
            ("size", f"{bytes_short(view['size_bytes'])} in {len(view['files'])} files"),
            ("fingerprint", view["fingerprint"]),
            ("recipe", view["recipe"] and f"{view['recipe']['text']}  ({view['recipe']['digest'][:19]})"),
            ("branches", plain(view["branches"]) if len(view["branches"]) > 1 else ""),
            ("versions", plain(view["tags_refs"])),
        ]
    )
    for patch in view["patches"]:
        show_heading(f"{patch['kind']} in {patch['path']}/" if patch["path"] else patch["kind"])
        show_facts(patch)
    if view["patch_count"] > len(view["patches"]) > 1:
        say(f"{view['patch_count'] - len(view['patches'])} more: adapterhub patch list --within {view['id']}")
    _show_lineage(view["lineage"])
    if view["evaluations"]:
        show_heading("evaluations")
        rows = ((e["task"], e["dataset"], e["metric"], f"{e['value']:g}") for e in view["evaluations"])
        show_table(("task", "dataset", "metric", "value"), rows, numeric=("value",))


def show_facts(facts: Json) -> None:
    """Print one patch or model; of a repository of the server, or as `patch inspect` found it."""
    trained_on = facts["base"] or {}
    known = [
        ("path", facts["path"]),
        ("kind", f"{facts['kind']}: {facts['reason']}"),
        ("base", base(facts) if "fits" in trained_on else trained_on.get("name")),
        ("revision", trained_on.get("revision")),
        ("trained on", _training_base(trained_on)),
        ("effect", facts["effect"]),
        ("rank", rank(facts)),
        ("targets", plain(facts["targets"])),
        ("layers", _layers(facts["layers"])),
        ("parameters", _parameters(facts)),
        ("size", bytes_short(facts["size_bytes"])),
        ("method", facts.get("training_method")),
        ("data", plain(facts.get("datasets") or [])),
        ("tasks", plain(facts.get("tasks") or [])),
        ("languages", plain(facts.get("languages") or [])),
        ("digest", facts.get("digest")),
        ("needs", plain(facts.get("contract") or {})),
        ("made by", plain(facts.get("training") or {})),
        ("parts", plain(facts.get("parts") or [])),
    ]
    told = {value for _, value in known}
    details = [
        (name.replace("_", " "), plain(value))
        for name, value in facts["detail"].items()
        if name != "non_finite"  # it is among the problems
    ]
    show_fields([*known, *(pair for pair in details if pair[1] not in told)])
    show_fields(("problem", problem) for problem in facts["problems"])
    show_fields(("warning", warning) for warning in facts["warnings"])


def job_row(job: Json) -> Sequence[object]:
    """One line of `job list`."""
    at = job["progress"]
    share = f"{100 * at['done'] / at['total']:.0f} %" if at["total"] and job["state"] == "running" else ""
    told = job["error"]["message"] if job["error"] else (job["result"] or {}).get("repo")
    return (job["id"], job["kind"], job["state"], share, ago(job["created_at"]), told)


def show_job(job: Json) -> None:
    """Print one job."""
    error = job["error"] or {}
    show_fields(
        [
            ("job", job["id"]),
            ("kind", job["kind"]),
            ("state", job["state"]),
            ("progress", job_row(job)[3]),
            ("doing", job["progress"]["message"] if job["state"] == "running" else ""),
            ("created", ago(job["created_at"])),
            ("attempts", job["attempts"]),
            ("error", error and f"{error['message']} ({error['code']})"),
            *((name, plain(value)) for name, value in (job["result"] or {}).items() if isinstance(value, str)),
        ]
    )


def show_merge(result: Json) -> None:
    """Print what a merge made. result: of the job, or what the local engine reports."""
    report = result["report"]
    changed = f"{report['tensors_touched']} of {report['tensors_touched'] + report['tensors_copied']}"
    lost = report.get("lost_to_rounding")
    show_fields(
        [
            ("result", f"{result['repo']}@{result['commit'][:12]}" if "repo" in result else result["folder"]),
            ("", "the same bytes were there already" if result.get("is_new") is False else ""),
            ("recipe", result.get("recipe_digest")),
            ("files", f"{len(result['files'])}, {bytes_short(sum(file['size'] for file in result['files']))}"),
            ("tensors", f"{changed} changed"),
            ("lost to rounding", f"{100 * lost:.2g} % of the change" if lost else ""),
            ("mostly lost", plain(sorted(report.get("mostly_lost") or {}))),
            ("made for a quantised base", plain(sorted(report.get("mostly_quantisation") or {}))),
        ]
    )


def recipe_row(item: Json) -> Sequence[object]:
    """One line of `recipe list`."""
    name = item["id"] + (" (private)" if item["private"] else "")
    return (name, item["version"], item["text"] or UNSEEN, item["author"], ago(item["updated_at"]))


def version_row(item: Json) -> Sequence[object]:
    """One line of `recipe versions`."""
    text, digest = item["text"] or UNSEEN, (item["digest"] or "")[:19]
    return (item["version"], text, item["message"], digest, item["author"], ago(item["created_at"]))


def show_saved_recipe(found: Json) -> None:
    """Print a version of a saved recipe."""
    show_fields(
        [
            ("name", f"{found['name']}@{found['version']}" + (" (private)" if found["private"] else "")),
            ("recipe", found["text"]),
            ("message", found["message"]),
            ("makes", found["as"] or "model"),
            ("dtype", found["dtype"]),
            ("digest", found["digest"]),
            ("saved", f"by {found['author']} {ago(found['created_at'])}"),
            ("latest", f"version {found['latest']}" if found["latest"] != found["version"] else ""),
        ]
    )
    show_recipe_inputs(found["canonical"])


def show_recipe_inputs(canonical: Json) -> None:
    """Print the inputs of a canonical recipe, with their commits."""
    show_heading("inputs")
    show_table(("name", "kind", "digest"), ((i["name"], i["kind"], i["digest"][:19]) for i in canonical["inputs"]))


def show_plan(plan: Json, *, tensors: bool = False) -> None:
    """Print what a merge would do; tensors: with a line for each."""
    show_fields(
        [
            ("recipe", plan["recipe"]),
            ("digest", plan["digest"]),
            ("makes", plan["as"]),
            ("base", plan["base"]),
            ("tensors", f"{plan['tensors_touched']} of {plan['tensors']} changed"),
            ("methods", _counted(plan["methods"])),
            ("dtypes", _counted(plan["dtypes"])),
            ("size", bytes_short(plan["size_bytes"])),
            ("memory", f"{bytes_short(plan['peak_bytes'])} at most for one step"),
            ("time", f"about {seconds_short(plan['estimate']['seconds'])} ({plan['estimate']['source']})"),
            ("licences", plain(plan["licences"])),
            *(("approximated", told) for told in plan["approximations"]),
            *(("note", note) for note in plan["notes"]),
        ]
    )
    show_heading("inputs")
    rows = ((one["ref"], one["kind"], _commit(one["name"]), one["licence"]) for one in plan["inputs"])
    show_table(("name", "kind", "commit", "licence"), rows)
    if tensors:
        show_heading("tensors")
        lines = ((one["name"], one["method"], one["dtype"], _shape(one["shape"])) for one in plan["per_tensor"])
        show_table(("tensor", "method", "dtype", "shape"), lines)


def _counted(counts: Mapping[str, int]) -> str:
    """ "ties: 28 tensors, copied: 2"."""
    told = [f"{name}: {count}" for name, count in counts.items()]
    return ", ".join([told[0] + (" tensors" if next(iter(counts.values())) != 1 else " tensor"), *told[1:]])


def _commit(name: str) -> str:
    return name.partition("@")[2][:12]


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"


def show_reproduction(found: Json) -> None:
    """Print whether a result that was made again is the committed one."""
    first = (found["tensors"] or {}).get("first") or {}
    show_fields(
        [
            ("result", f"{found['repo']}@{found['commit'][:12]}" if "repo" in found else found["folder"]),
            ("verdict", found["sentence"]),
            ("recipe", found["recipe_digest"]),
            ("first tensor", first.get("name")),
            *(("unlike", told) for told in found["execution"]["unalike"]),
        ]
    )
    show_heading("files")
    show_table(("file", "state"), found["files"].items())


def show_tuning(result: Json) -> None:
    """Print what a search of weights found."""
    start = result["start"]
    why = {"evaluations": "all evaluations are spent", "time": "time is up", "converged": "nothing is left to try"}
    show_fields(
        [
            ("recipe", result["recipe"]),
            ("digest", result["recipe_digest"]),
            ("score", f"{result['score']:.6g}, {result['measure']}"),
            ("before", f"{start['score']:.6g} at {start['expression']}"),
            ("tried", f"{result['evaluations']}, of which {result['refused']} were refused"),
            ("ended", why[result["ended"]]),
            ("journal", result.get("journal")),
        ]
    )


def show_masks(result: Json) -> None:
    """Print what became of each task."""
    show_fields([("folder", result["folder"]), ("masks", result["method"])])
    columns = ("task", "selected", "scale", "error", "digest")
    rows = (
        (one["name"], f"{one['selected']:.1%}", f"{one['scale']:.4g}", f"{one['error']:.3g}", one["digest"][:19])
        for one in result["tasks"]
    )
    show_table(columns, rows, numeric=columns[1:4])


def show_curve(result: Json) -> None:
    """Print gain against retention at each strength, and the recipe at the knee."""
    columns = ("strength", "gain", "retention", "above the chord", "")
    rows = (
        (
            f"{one['strength']:g}",
            f"{one['gain']:+.4g}",
            f"{one['retention']:+.4g}",
            "" if one["distance"] is None else f"{one['distance']:.3f}",
            "knee" if one["strength"] == result["knee"] else "",
        )
        for one in result["points"]
    )
    show_table(columns, rows, numeric=columns[:-1])
    show_heading("knee")
    if result["recipe"] is None:
        say("none: the patch gains nothing at any of these strengths", to_stdout=True)
    else:
        show_fields([("recipe", result["recipe"]), ("digest", result["recipe_digest"])])


def show_port(result: Json) -> None:
    """Print the verdict of a port, its measurements by layer, and where the ported patch is."""
    report = result["report"]
    show_text(report["sentence"])
    show_fields(
        [
            ("result", f"{result['repo']}@{result['branch']} ({result['commit'][:12]})" if "repo" in result else ""),
            ("drift", _number(report["drift"]) and f"{_number(report['drift'])} of the base's norm"),
            ("drift to patch", _number(report["drift_to_patch"])),
            ("overlap above chance", _number(report["overlap_above_chance"])),
            ("structured drift", _number(report["structured_drift"])),
            *(("reason", reason) for reason in report["reasons"]),
        ]
    )
    if report["sites"]:
        show_heading("drift by layer")
        columns = ("layer", "sites", "drift", "drift/patch", "overlap above chance")
        show_table(columns, _drift_rows(report["sites"]), numeric=columns[1:])


def show_import(outcome: Json) -> None:
    """Print what became of one item of an import."""
    if outcome["state"] == "skipped":
        say(f"skipped {outcome['source']}: {plain(outcome['problems'])}")
        return
    count = outcome["commits"]
    commits = "1 commit" if count == 1 else f"{count} commits"
    parts = [
        f"{outcome['state']} {outcome['kind']}".strip(),
        f"{commits} on {plain(outcome['branches'])}" if count else "",
        f"tags {plain(outcome['tags'])}" if count and outcome["tags"] else "",
        f"{bytes_short(outcome['sent_bytes'])} sent" if outcome["sent_bytes"] else "",
        f"{bytes_short(outcome['kept_bytes'])} there already" if outcome["kept_bytes"] else "",
    ]
    say(f"{outcome['repo'] or outcome['source']}: {', '.join(filter(None, parts))}", to_stdout=True)
    for name in ("problem", "warning"):
        for text in outcome[name + "s"]:
            say(f"  {name}: {text}")
    for one in outcome["skipped"]:
        say(f"  left out {one['what']}: {one['reason']}")


def show_export(saved: Json) -> None:
    """Print what became of one repository of an export, or how it was found."""
    received = saved["received_bytes"]
    parts = [
        f"{saved['state']}: {saved['files']} files of {plain(saved['refs'])}",
        f"{bytes_short(received)} received" if received else "",
        f"{bytes_short(saved['kept_bytes'])} there already"
        if saved["kept_bytes"] and saved["state"] == "exported"
        else "",
    ]
    say(f"{saved['repo']}: {', '.join(filter(None, parts))}", to_stdout=True)
    for text in saved["problems"]:
        say(f"  problem: {text}")


def _show_lineage(lineage: Json) -> None:
    parents = [(p.get("relation"), p.get("repository") or p.get("name"), _short(p)) for p in lineage["parents"]]
    children = [("parent of", c.get("repository") or c.get("name"), c.get("relation")) for c in lineage["children"]]
    if parents or children:
        show_heading("lineage")
        show_table(("relation", "repository", ""), [*parents, *children])


def _short(parent: Json) -> str:
    weight = parent.get("weight")
    parts = ((parent.get("commit") or "")[:12], f"weight {weight:g}" if weight is not None else "")
    return ", ".join(filter(None, parts))


def _training_base(known: Json) -> str:
    parts = (known.get("fingerprint"), f"quantised as {known.get('quantisation')}")
    is_plain = known.get("quantisation") in (None, "none", "unknown")
    return ", ".join(part for part in (parts[:1] if is_plain else parts) if part)


def _layers(layers: Json) -> str:
    """How many layers and sites are touched: "12 layers, 4 sites each"."""
    counts = {layer: count for layer, count in layers.items() if layer != "-"}
    outside = layers.get("-", 0)
    each = set(counts.values())
    parts = []
    if counts:
        sites = f"{_sites(each.pop())} each" if len(each) == 1 else _sites(sum(counts.values()))
        parts.append(f"{len(counts)} layers, {sites}" if len(counts) > 1 else f"1 layer, {sites}")
    if outside:
        parts.append(f"{_sites(outside)} outside layers")
    return "; ".join(parts)


def _sites(count: int) -> str:
    return "1 site" if count == 1 else f"{count} sites"


def _parameters(facts: Json) -> str:
    dtypes = ", ".join(facts["dtypes"])
    return f"{facts['parameter_count']:,}" + (f" ({dtypes})" if dtypes else "")


def _drift_rows(sites: Iterable[Json]) -> list[Sequence[object]]:
    from adapterhub.merging.sites import layer_of

    layers: dict[str, list[Json]] = {}
    for site in sites:
        layers.setdefault(layer_of(site["site"]), []).append(site)
    names = ("drift", "drift_to_patch", "overlap_above_chance")
    return [
        (layer, len(found), *(_number(_mean([one[name] for one in found])) for name in names))
        for layer, found in sorted(layers.items(), key=lambda pair: (pair[0] == "-", len(pair[0]), pair[0]))
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def show_conversion(found: Mapping[str, Any]) -> None:
    """What a conversion wrote: files, the terms of a delta, or the error of each site with the largest first."""
    if "files" in found:
        show_table(("from", "to", "tensors"), ((one["from"], one["to"], one["tensors"]) for one in found["files"]))
        for name in found["left_out"]:
            say(f"{name}: holds no weights and is left out")
        return
    if "terms" in found:
        show_table(("parameter", "term"), found["terms"].items())
        say(f"{found['from']} to {found['to']}: {len(found['terms'])} parameters, exactly", to_stdout=True)
        return
    sites = sorted(found["sites"].items(), key=lambda one: -one[1])
    show_table(("parameter", "relative error"), ((name, f"{error:.1e}") for name, error in sites))
    exact = "exactly" if found["is_exact"] else f"with a relative error of up to {found['largest_error']:.1e}"
    say(f"{found['from']} to {found['to']}: {len(sites)} parameters, {exact}", to_stdout=True)
