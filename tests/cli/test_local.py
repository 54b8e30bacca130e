"""Commands that need no server: inspect, kinds, parse, methods, and merges of local folders."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adapterhub.merging import native
from tests.cli.conftest import Command
from tests.hub.services.samples import SITE


def test_inspect_tells_what_a_folder_holds(command: Command, folders: Path) -> None:
    ended = command("patch", "inspect", str(folders / "code"))
    assert ended.code == 0
    for told in ("lora", "demo/base", "q_proj", "2 layers, 1 site each", "64 (F32)"):
        assert told in ended.out
    [facts] = map(json.loads, command("patch", "inspect", str(folders / "code"), "--json").out.splitlines())
    assert (facts["kind"], facts["rank_max"], facts["base"]["name"]) == ("lora", 2, "demo/base")


def test_inspect_of_a_file_tells_the_patch_it_belongs_to(command: Command, folders: Path) -> None:
    assert "lora" in command("patch", "inspect", str(folders / "code" / "adapter_model.safetensors")).out


def test_inspect_exits_with_4_where_there_are_problems(command: Command, folders: Path) -> None:
    (folders / "code" / "adapter_model.safetensors").write_bytes(b"\xff" * 64)
    ended = command("patch", "inspect", str(folders / "code"))
    assert ended.code == 4
    assert "adapter_model.safetensors" in ended.out + ended.err


def test_inspect_of_what_is_no_patch_exits_with_4_and_of_nothing_with_3(command: Command, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    assert command("patch", "inspect", str(tmp_path)).code == 4
    assert command("patch", "inspect", str(tmp_path / "missing")).code == 3


def test_kinds_and_methods_are_those_of_the_registries(command: Command) -> None:
    from adapterhub.merging.methods import methods
    from adapterhub.merging.patches import kinds

    listed = [json.loads(line)["name"] for line in command("patch", "kinds", "--json").out.splitlines()]
    assert listed == list(kinds())
    found = [json.loads(line) for line in command("merge", "methods", "--json").out.splitlines()]
    assert [one["name"] for one in found] == list(methods())
    ties = next(one for one in found if one["name"] == "ties")
    assert {"name": "density", "range": "(0, 1]"}.items() <= ties["parameters"][0].items()
    assert "density" in command("merge", "methods").out


def test_operators_are_those_of_the_registry(command: Command) -> None:
    from adapterhub.merging.decoding import operators

    found = [json.loads(line) for line in command("recipe", "operators", "--json").out.splitlines()]
    assert [one["usage"] for one in found] == [one.usage for one in operators().values()]
    assert "alpha" in command("recipe", "operators").out


def test_a_composition_parses_and_is_not_merged(command: Command, folders: Path, tmp_path: Path) -> None:
    text = "proxy(base; base + code, anti=base)"
    assert command("recipe", "parse", text).out == text + "\n"
    given = [option for name in ("base", "code") for option in ("--input", f"{name}={folders / name}")]
    for asked in (["merge", "run", text, "--out", str(tmp_path / "out")], ["recipe", "explain", text]):
        ended = command(*asked, *given)
        assert ended.code == 4
        assert "composes models while they decode and has no merged result; serve it under model=" in ended.err
    assert not (tmp_path / "out").exists()


def test_parse_prints_the_normal_form_and_points_at_mistakes(command: Command) -> None:
    assert command("recipe", "parse", "a/b + .50 * c/d").out == "a/b + 0.5*c/d\n"
    assert json.loads(command("recipe", "parse", "a/b + c/d", "--json").out)["references"] == ["a/b", "c/d"]
    ended = command("recipe", "parse", "a/b + ")
    assert ended.code == 4
    assert "at character" in ended.err


def test_merge_out_merges_local_folders(command: Command, folders: Path) -> None:
    inputs = ["--input", f"base={folders / 'base'}", "--input", f"code={folders / 'code'}"]
    ended = command("merge", "run", "base + 0.5*code", *inputs, "--out", str(folders / "out"), "--json")
    assert ended.code == 0, ended.err
    result = json.loads(ended.out)
    assert result["report"]["tensors_touched"] == 2
    assert {file["path"] for file in result["files"]} >= {"model.safetensors", "config.json", "recipe.json"}
    before = load_file(folders / "base" / "model.safetensors")
    after = load_file(folders / "out" / "model.safetensors")
    factors = load_file(folders / "code" / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    delta = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"] * (4 / 2)
    site = SITE.format(layer=0, module="q_proj")
    assert abs(after[site] - (before[site] + 0.5 * delta)).max() < 1e-6


FILE = """
merge_method: task_arithmetic
base_model: {base}
models:
  - {{model: {code}, parameters: {{weight: [0.2, 0.8]}}}}
parameters: {{int8_mask: true}}
"""


def test_a_recipe_file_is_printed_as_an_expression_with_notes(command: Command, folders: Path) -> None:
    (folders / "file.yml").write_text(FILE.format(base="demo/base", code="demo/code"))
    ended = command("recipe", "parse", "--config", str(folders / "file.yml"))
    assert ended.out == "task_arithmetic(demo/base; [0.2, 0.8]*demo/code)\n"
    assert "parameters.int8_mask has no effect" in ended.err
    (folders / "file.yml").write_text("merge_method: tie\n")
    ended = command("recipe", "parse", "--config", str(folders / "file.yml"))
    assert ended.code == 4
    assert "merge_method: tie: no such merge method; did you mean ties?" in ended.err


def test_a_recipe_file_is_merged_here_from_the_folders_that_it_names(command: Command, folders: Path) -> None:
    (folders / "file.yml").write_text(FILE.format(base=folders / "base", code=folders / "code"))
    ended = command("merge", "run", "--config", str(folders / "file.yml"), "--out", str(folders / "out"), "--json")
    assert ended.code == 0, ended.err
    before, after = (load_file(folders / name / "model.safetensors") for name in ("base", "out"))
    factors = load_file(folders / "code" / "adapter_model.safetensors")
    for layer, weight in ((0, 0.2), (1, 0.8)):
        stem = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        delta = factors[f"{stem}.lora_B.weight"] @ factors[f"{stem}.lora_A.weight"] * (4 / 2)
        site = SITE.format(layer=layer, module="q_proj")
        assert abs(after[site] - (before[site] + weight * delta)).max() < 1e-6


def test_names_of_a_recipe_file_are_folders_here_where_such_are_or_are_told(
    command: Command, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folders / "file.yml").write_text(FILE.format(base="base", code="./nowhere/code"))
    monkeypatch.chdir(folders)
    merge = ("merge", "run", "--config", "file.yml", "--out", "out")
    ended = command(*merge)
    assert ended.code == 3
    assert "the recipe file names ./nowhere/code, and no folder is there; say --input code=FOLDER" in ended.err
    assert command(*merge, "--input", "./nowhere/code=code").code == 0


def test_a_recipe_is_an_expression_or_a_file_that_is_there(command: Command, folders: Path) -> None:
    (folders / "file.yml").write_text(FILE.format(base="a/b", code="c/d"))
    assert command("recipe", "parse").code == 2
    assert command("recipe", "parse", "a/b", "--config", str(folders / "file.yml")).code == 2
    assert command("recipe", "parse", "--config", str(folders / "missing.yml")).code == 3


def test_merge_out_says_what_it_misses(command: Command, folders: Path) -> None:
    base = f"base={folders / 'base'}"
    out = str(folders / "out")
    ended = command("merge", "run", "base + 0.5*code", "--input", base, "--out", out)
    assert (ended.code, "--input code=FOLDER" in ended.err) == (2, True)
    assert command("merge", "run", "base", "--input", "base=/nowhere", "--out", out).code == 3
    assert command("merge", "run", "base", "--input", "base", "--out", out).code == 2
    assert command("merge", "run", "base", "--input", base).code == 2
    assert command("merge", "run", "base", "--input", base, "--out", out, "--push", "a/b").code == 2
    assert not (folders / "out").exists()


def test_convert_writes_a_patch_in_another_form(command: Command, folders: Path) -> None:
    source, base, out = (str(folders / name) for name in ("code", "base", "out"))
    ended = command("patch", "convert", source, out, "--to", "lora", "--base", base, "--json")
    assert ended.code == 0
    told = json.loads(ended.out)
    assert (told["from"], told["to"], told["is_exact"], len(told["sites"])) == ("lora", "lora", True, 2)
    assert "demo/base" in command("patch", "inspect", out).out
    assert command("patch", "convert", source, out, "--to", "lora").code == 4  # it is there already
    ended = command("patch", "convert", source, str(folders / "dense"), "--to", "dense", "--base", base)
    assert (ended.code, "exactly" in ended.out) == (0, True)
    assert (folders / "dense" / "patch.json").exists()


def test_convert_refuses_what_does_not_go_together(command: Command, folders: Path) -> None:
    source, base, out = (str(folders / name) for name in ("code", "base", "out"))
    assert command("patch", "convert", source, out, "--to", "dense").code == 2
    assert command("patch", "convert", source, out, "--to", "gguff").code == 2
    assert command("patch", "convert", source, out, "--to", "safetensors", "--base", base).code == 2
    assert command("patch", "convert", source, out, "--to", "safetensors").code == 4  # there is no pickle
    assert command("patch", "convert", source + "-missing", out, "--to", "lora").code == 3
    assert not (folders / "out").exists()


def test_convert_makes_safetensors_of_a_pickle(command: Command, folders: Path) -> None:
    import torch

    torch.save({"a": torch.ones(2)}, folders / "adapter_model.bin")
    ended = command("patch", "convert", str(folders / "adapter_model.bin"), str(folders / "out"), "--to", "safetensors")
    assert (ended.code, "adapter_model.safetensors" in ended.out) == (0, True)
    assert load_file(folders / "out" / "adapter_model.safetensors")["a"].tolist() == [1, 1]


def test_convert_makes_a_native_patch_of_a_pickled_delta(command: Command, folders: Path) -> None:
    import torch

    step = {"size": [2, 3], "index_steps": [1, 2], "values": torch.ones(2)}
    torch.save({"diffs": {"a.weight": step}}, folders / "licences" / "pytorch_diff.bin")
    ended = command("patch", "convert", str(folders / "licences"), str(folders / "out"), "--to", "native", "--json")
    assert json.loads(ended.out) == {"from": "LT-SFT", "to": "native", "terms": {"a.weight": "sparse"}}
    assert "sparse" in command("patch", "inspect", str(folders / "out")).out
    assert command("patch", "convert", str(folders / "code"), str(folders / "no"), "--to", "native").code == 4


def test_convert_makes_a_native_mask_of_a_graft(command: Command, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for name, moved in (("base", 0.0), ("tuned", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "bert"}')
        save_file({"w": torch.tensor([0.0, moved, 2 * moved])}, tmp_path / name / "model.safetensors")
    torch.save([torch.tensor([9.0, -9.0, 9.0])], tmp_path / "mask.pt")
    (tmp_path / "graft.json").write_text('{"names": ["w"], "sigmoid_bias": 1, "density": 0}')
    given = [str(tmp_path / "mask.pt"), str(tmp_path / "out"), "--to", "native", "--tuned", str(tmp_path / "tuned")]
    assert command("patch", "convert", *given).code == 2
    given += ["--base", str(tmp_path / "base"), "--graft", str(tmp_path / "graft.json")]
    assert json.loads(command("patch", "convert", *given, "--json").out)["terms"] == {"w": "mask"}
    assert load_file(tmp_path / "out" / "patch.safetensors")["w::t0.delta"].tolist() == [0, 0, 2]


def test_convert_makes_a_patch_that_runs_of_pyreft_s_folder(command: Command, tmp_path: Path) -> None:
    from tests.merging import tiny
    from tests.merging.test_pyreft import saved

    saved(tmp_path / "in")
    base = tiny.saved(tiny.llama(), tmp_path / "base")
    given = [str(tmp_path / "in"), str(tmp_path / "out"), "--to", "native", "--positions", "f7+l7"]
    assert command("patch", "convert", *given).code == 2
    assert "2 parameters, exactly" in command("patch", "convert", *given, "--base", str(base)).out
    assert "reft" in command("patch", "inspect", str(tmp_path / "out")).out


def test_inspect_finds_values_that_are_not_finite_only_when_it_reads_them(command: Command, tmp_path: Path) -> None:
    delta = np.array([[np.inf, 1.0]], np.float32)
    native.write_patch(tmp_path, sites={"w": native.term("dense", (1, 2), delta=delta)}, base={})
    assert command("patch", "inspect", str(tmp_path)).code == 0
    ended = command("patch", "inspect", str(tmp_path), "--values", "--json")
    assert ended.code == 4
    assert "w::t0.delta holds NaN or infinity, first at (0, 0)" in json.loads(ended.out)["problems"][0]


def test_extract_lists_the_error_of_every_parameter(command: Command, folders: Path, tmp_path: Path) -> None:
    paths = (str(folders / "base"), str(folders / "base-v2"), str(tmp_path / "patch"))
    ended = command("patch", "extract", *paths, "--as", "xor", "--json")
    assert ended.code == 0
    assert {row["error"] for row in map(json.loads, ended.out.splitlines())} == {0.0}
    assert "xor" in command("patch", "inspect", paths[2]).out


def test_inspect_tells_what_a_patch_needs_and_its_parts(command: Command, tmp_path: Path) -> None:
    native.write_patch(
        tmp_path,
        sites={"w": native.prune(np.eye(2) > 0)},
        base={},
        contract={"sampling_rate": 16_000},
        training={"method": "DPO"},
        parts=[{"name": "adapter", "sites": ["w"]}],
    )
    shown = command("patch", "inspect", str(tmp_path)).out
    assert all(word in shown for word in ("needs", "16000", "made by", "DPO", "adapter"))


def test_convert_takes_a_layout_only_with_what_it_needs(command: Command, folders: Path) -> None:
    source, out, base = (str(folders / name) for name in ("code", "out", "base"))
    for more in (["--to", "dense", "--layout", "split", "--base", base], ["--to", "lora", "--layout", "odd"]):
        assert command("patch", "convert", source, out, *more).code == 2
    assert command("patch", "convert", source, out, "--to", "lora", "--layout", "split").code == 2
    ended = command("patch", "convert", source, out, "--to", "lora", "--layout", "split", "--base", base)
    assert ended.code == 4  # this base fuses nothing
    assert "are not fused" in ended.err


def test_inspect_warns_without_an_exit_code(command: Command, tmp_path: Path) -> None:
    A, B = np.ones((1, 2), np.float32), np.zeros((2, 1), np.float32)
    native.write_patch(tmp_path, sites={"w": native.lowrank(A, B)}, base={})
    assert json.loads(command("patch", "inspect", str(tmp_path), "--json").out)["warnings"] == []
    ended = command("patch", "inspect", str(tmp_path), "--values")
    assert ended.code == 0
    assert "w of 1 sites: B is all zeros" in ended.out


def test_explain_of_folders_tells_methods_bytes_time_and_licences(command: Command, folders: Path) -> None:
    (folders / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    named = [f"--input={name}={folders / name}" for name in ("base", "code", "licences")]
    expression = "dare_ties(base; code, 0.5*licences, seed=3)"
    told = json.loads(command("recipe", "explain", expression, *named, "--dtype", "BF16", "--json").out)
    assert told["methods"] == {"dare_ties": 2, "cast": 2}
    assert told["licences"] == ["apache-2.0", "unknown"]
    assert told["estimate"]["source"].startswith("stated: ")
    assert any("seed 3" in one for one in told["approximations"])
    merged = command("merge", "run", expression, *named, "--dtype", "BF16", "--out", str(folders / "x"), "--json")
    assert json.loads(merged.out)["recipe_digest"] == told["digest"]
    shown = command("recipe", "explain", expression, *named, "--tensors").out
    assert "dare_ties: 2 tensors, copied: 2" in shown
    assert any(SITE.format(layer=1, module="q_proj") in line and "dare_ties" in line for line in shown.splitlines())
    missing = command("recipe", "explain", expression, *named[:2])
    assert (missing.code, "--input licences=FOLDER" in missing.err) == (2, True)


def test_a_local_result_is_made_again_and_compared(command: Command, folders: Path) -> None:
    named = [f"--input={name}={folders / name}" for name in ("base", "code", "licences")]
    made = command("merge", "run", "ties(base; code, 0.5*licences)", *named, "--out", str(folders / "x"))
    assert made.code == 0, made.err
    same = command("recipe", "reproduce", str(folders / "x"), *named)
    assert (same.code, "reproduced: all" in same.out) == (0, True)
    assert sorted(one.name for one in folders.iterdir()) == ["base", "base-v2", "code", "licences", "x"]
    other = [*named[:1], f"--input=code={folders / 'licences'}", f"--input=licences={folders / 'code'}"]
    differs = command("recipe", "reproduce", str(folders / "x"), *other, "--json")
    told = json.loads(differs.out)
    assert (differs.code, told["is_same"], told["tensors"]["differing"]) == (4, False, 2)
    assert told["files"]["recipe.json"] == "differs"
    missing = command("recipe", "reproduce", str(folders / "x"), *named[:2])
    assert (missing.code, "--input licences=FOLDER" in missing.err) == (2, True)
    assert command("recipe", "reproduce", str(folders / "base"), *named).code == 3
    small = command("recipe", "reproduce", str(folders / "x"), *named, "--memory", "320MiB")
    assert (small.code, "0 are left for it beside the process itself" in small.err) == (4, True), small.err


def test_bad_expressions_are_refused_at_once_with_what_to_do(command: Command, folders: Path) -> None:
    named = [f"--input={name}={folders / name}" for name in ("base", "code")]
    bad = {
        "a/b + " * 1_700_000 + "a/b": "at most 100000 are read",
        "(" * 10_000 + "a/b": "nested deeper than 64",
        "tise(base; code)": "did you mean ties?",
        "ties(base; code, densty=0.2)": "did you mean density?",
        "base + cod": "--input cod=FOLDER",
    }
    for expression, said in bad.items():
        for asked in (("recipe", "explain"), ("merge", "run", "--out", str(folders / "x"))):
            ended = command(*asked, expression, *named)
            assert (ended.code, said in ended.err) == (2 if "FOLDER" in said else 4, True)
            assert len(ended.err) < 2000
    assert not (folders / "x").exists()
