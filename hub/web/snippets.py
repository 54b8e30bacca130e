"""Commands and code that use one repository, ready to be copied from its page."""

from collections.abc import Mapping
from typing import Any

_LOAD_MODEL = {
    "image-classification": "AutoModelForImageClassification",
    "text-classification": "AutoModelForSequenceClassification",
    "feature-extraction": "AutoModel",
}


def snippets(repo: Mapping[str, Any], endpoint: str, path: str | None = None) -> list[tuple[str, str]]:
    """(title, code) in the order shown. repo: as `services.describe.repo_view` gives it; path: of one patch in it."""
    folder = path or ""
    patch = next((patch for patch in repo["patches"] if patch["path"] == folder), None)
    kind = patch["kind"] if patch else repo["kind"]
    repo_id = f"{repo['id']}/{folder}" if folder else repo["id"]
    chosen = f' --include "{folder}/*"' if folder else ""
    found = [("Download", f"export HF_ENDPOINT={endpoint}\nhf download {repo['id']}{chosen}")]
    if kind == "lora":
        found.append(("peft", _peft(repo["id"], endpoint, folder)))
    if kind == "model":
        found.append(("transformers", _transformers(repo, endpoint)))
    if patch and kind not in ("model", "unknown") and not patch["problems"]:
        base = (patch["base"] or {}).get("name") or "BASE"
        found.append(("Merge", f'adapterhub merge run "{base} + 0.7*{repo_id}" --push you/merged'))
        found.append(("Port to another base", f"adapterhub port run {repo_id} --to you/base-v2 --push"))
    if kind not in ("unknown", "patches"):
        found += [("openai", _openai(repo_id, endpoint)), ("curl", _curl(repo_id, endpoint))]
    return found


def _peft(repo_id: str, endpoint: str, folder: str) -> str:
    where = f', subfolder="{folder}"' if folder else ""
    return (
        f"# HF_ENDPOINT={endpoint}\n"
        "from peft import AutoPeftModelForCausalLM\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("{repo_id}"{where})'
    )


def _transformers(repo: Mapping[str, Any], endpoint: str) -> str:
    loader = _LOAD_MODEL.get(repo.get("pipeline_tag") or "", "AutoModelForCausalLM")
    loading = f'model = {loader}.from_pretrained("{repo["id"]}")'
    return f"# HF_ENDPOINT={endpoint}\nfrom transformers import {loader}\n\n{loading}"


def _openai(repo_id: str, endpoint: str) -> str:
    return (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{endpoint}/v1", api_key=TOKEN)\n'
        f'answer = client.completions.create(model="{repo_id}", prompt="Once", max_tokens=50)\n'
        "print(answer.choices[0].text)"
    )


def _curl(repo_id: str, endpoint: str) -> str:
    return (
        f'curl {endpoint}/v1/completions -H "Authorization: Bearer $TOKEN" \\\n'
        '  -H "Content-Type: application/json" \\\n'
        f"""  -d '{{"model": "{repo_id}", "prompt": "Once", "max_tokens": 50}}'"""
    )
