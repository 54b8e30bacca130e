"""Recipe files: which expression each is, what is said of wrong ones, and every real one of the corpus."""

from pathlib import Path

import pytest

from adapterhub.merging.errors import RecipeFileError, RecipeTooLarge
from adapterhub.merging.recipes.expression import parse
from adapterhub.merging.recipes.nodes import Form, Ref
from adapterhub.merging.recipes.tokenizer import TokenizerPolicy, TokenRow
from adapterhub.merging.recipes.yaml import read, text_of

CORPUS = Path(__file__).parents[2] / "corpus" / "recipes"

TIES = "merge_method: ties\nbase_model: b\nmodels:\n  - {model: a, parameters: {weight: 0.5}}\n"


def ties(more: str = "", own: str = "weight: 0.5") -> str:
    """A file of TIES with two models, the second with parameters of its own."""
    return TIES + f"  - {{model: c, parameters: {{{own}}}}}\n" + more


MEANINGS = {
    ties(): "ties(b; 0.5*a, 0.5*c)",
    ties("parameters: {density: 0.2, normalize: false, lambda: 2}"): (
        "ties(b; 0.5*a, 0.5*c, density=0.2, normalize=none, scale=2)"
    ),
    ties("parameters: {weight: 9, density: [0.2, 1]}", "density: [0.2, 1]"): "ties(b; 0.5*a, 9*c, density=[0.2, 1])",
    ties("parameters: {density: 0.3}", "weight: 1, density: 1"): "ties(b; 0.5*ties(a, density=0.3), c)",
    ties("parameters: {weight: [1, 2]}", "weight: [{filter: mlp, value: 3}]"): (
        'ties(b; 0.5*a, {"mlp": 3, "*": [1, 2]}*c)'
    ),
    ties("parameters: {weight: {filter: attn, value: 4}}", "weight: [{filter: mlp, value: 3}, {value: '1e-1'}]"): (
        'ties(b; 0.5*a, {"mlp": 3, "*": 0.1}*c)'
    ),
    ties().replace("ties", "dare_ties") + "seed: 7": "dare_ties(b; 0.5*a, 0.5*c, density=1, rescale=l1, seed=7)",
    ties(own="weight: 1, density: 0.4").replace("ties", "dare_ties") + "seed: 7\nparameters: {rescale: false}": (
        "ties(b; 0.5*dare_linear(a, density=1, rescale=none, seed=7), "
        "dare_linear(c, density=0.4, rescale=none, seed=7), normalize=none)"
    ),
    ties().replace("model: a", "model: b"): "ties(b; 0.5*c)",
    ties(own="weight: 1").replace("{model: a, parameters: {weight: 0.5}}", "{model: b}"): "b + c",
    "{merge_method: ties, base_model: b, models: [{model: a}], parameters: {weight: 1, lambda: 0.9}}": (
        "ties(b; a, scale=0.9)"
    ),
    ties().replace("model: a,", "model: a@v1+l@v2,"): "ties(b; 0.5*(a@v1 + l@v2), 0.5*c)",
    ties().replace("model: a,", "model: {model: {path: a, revision: v1}, lora: {path: l}},"): (
        "ties(b; 0.5*(a@v1 + l), 0.5*c)"
    ),
    ties().replace("base_model: b", "base_model: b+l"): "b + l + ties(0.5*(a - l), 0.5*(c - l))",
    "{merge_method: slerp, base_model: b+l, models: [{model: a}], parameters: {t: 0.2}}": (
        "sequence(b; l, slerp(a - l, t=0.2))"
    ),
    "{merge_method: karcher, base_model: b, models: [{model: a}, {model: c}]}": "karcher(b; a, c, b)",
    "{merge_method: nuslerp, models: [{model: a}, {model: c}], parameters: {weight: 1}}": (
        "nuslerp(a; a, c, of=weights)"
    ),
    "{merge_method: tsv_m, base_model: b, models: [{model: a}, {model: c}]}": "tsv_m(b; a, c)",
    "{merge_method: linear, models: [{model: a}, {model: c}], parameters: {weight: 0.5, normalize: false}}": (
        "linear(a; 0.5*a, 0.5*c)"
    ),
    "{merge_method: linear, models: [{model: a}, {model: c}], parameters: {weight: 1, normalize: 0}}": (
        "passthrough(a; linear(a, c), scale=2)"
    ),
    "{merge_method: passthrough, models: [{model: a}]}": "a",
    "{merge_method: passthrough, slices: [{sources: [{model: a, layer_range: [0, 2]}]}, {sources: "
    "[{model: a+l, layer_range: [1, 3]}]}]}": "stack(a[0:2], a[1:3] + l[1:3])",
    "{merge_method: slerp, base_model: b, parameters: {t: 1}, slices: [{sources: [{model: b, layer_range: [0, 2]}, "
    "{model: a, layer_range: [4, 6]}]}, {base_model: c, sources: [{model: a, layer_range: [1, 3]}]}]}": (
        "stack(slerp(b[0:2]; a[4:6], t=1), slerp(c[1:3]; a[1:3], t=1))"
    ),
    "{merge_method: slerp, base_model: b, modules: {default: {parameters: {t: 0.1}, models: [{model: a}]}}}": (
        "slerp(b; a, t=0.1)"
    ),
    "{expression: a + 0.5*b, dtype: bfloat16}": "a + 0.5*b",
    "{merge_method: passthrough, modules: {vision_tower: {models: [{model: a}]}, text_decoder: {models: "
    "[{model: b+l}]}}}": (
        'a + {"multi_modal_projector.": 0, "visual.merger.": 0, "visual.deepstack_merger_list.": 0, '
        '"vision_tower.": 0, "visual.": 0, "vision_model.": 0, "language_model.": 1, "decoder.": 0, "encoder.": 0, '
        '"shared.": 0, "*": 1}'
        "*(b + l)"
    ),
}


@pytest.mark.parametrize("text", MEANINGS)
def test_a_file_is_an_expression(text: str) -> None:
    recipe = read(text)
    assert str(recipe) == MEANINGS[text]
    assert parse(str(recipe)).root == recipe.root
    assert recipe.text == text


WRONG = {
    "{}": "recipe file: has no merge_method",
    "{merge_method: tie}": "merge_method: tie: no such merge method; did you mean ties?",
    "{merge_method: [ties]}": "merge_method: is ['ties']; expected a name",
    "{merge_method: ties}": "has one of models, slices, modules, which are merged; found none",
    "{merge_method: ties, models: [1], slices: [1]}": "found models and slices",
    "{merge_methd: ties}": "merge_methd: no such key; did you mean merge_method?",
    "{gate_mode: hidden, experts: []}": "experts: belongs to mergekit-moe",
    "{merge_method: ties, models: [{model: a}]}": "models: ties merges what models have more than a base; name it as",
    "{merge_method: slerp, base_model: b, models: [{model: a}]}": "models: a t is needed for every input",
    "{merge_method: slerp, base_model: b, models: [{model: a}, {model: c}], parameters: {t: 0}}": (
        "models: slerp: has 2 inputs after its base; it takes 1; its base is b"
    ),
    ties().replace("weight: 0.5", "weigth: 0.5"): "parameters.weigth: no parameter of ties; did you mean weight?",
    ties(own="density: 1"): "models[1]: a weight is needed for every input",
    ties(own="weight: {filter: mlp, value: 1}"): "models[1]: a weight is needed for tensors that no filter names",
    ties(own="weight: []"): "models[1].parameters.weight: [] is no value; expected a value, a list of values",
    ties(own="weight: [0.1, [0.2]]"): "[0.1, [0.2]] is no value",
    ties(own="weight: x"): "models[1].parameters.weight: 'x' is no number",
    ties(own="weight: true"): "models[1].parameters.weight: is True; expected a number",
    ties(own="weight: {filter: mlp}"): "value is missing",
    ties(own="weight: {filtr: mlp, value: 1}"): "a condition has value, and filter where",
    ties(own="weight: {filter: [mlp], value: 1}"): "filter is ['mlp']; a part of tensors' names is expected",
    ties(own="weight: 1, density: 1.5"): "models: ties: density is 1.5; expected float in (0, 1]",
    ties("parameters: {normalize: maybe}"): "ties: normalize is 'maybe'; expected str in weights or count or none",
    ties("parameters: {dtype: float32}"): "parameters.dtype: is no parameter but a key of the file; move it to the top",
    ties("dtype: int8"): "dtype: is 'int8'; expected one of bfloat16, float16, float32, float64",
    ties("seed: -1"): "seed: is -1; expected a whole number",
    ties("heads: keep"): "heads: is 'keep'; expected keep:NAME with a model of this file, drop or multi",
    ties("heads: mean:a"): "heads: is 'mean:a'; expected keep:NAME",
    ties("layers: 3"): "layers: goes with an expression alone",
    ties("tokenizer_source: union\ntokenizer: {}"): "tokenizer: tokenizer_source is given too",
    ties("tokenizer: {sauce: base}"): "tokenizer.sauce: no such key; did you mean source?",
    ties("tokenizer: {tokens: {x: {source: {kind: one}}}}"): "'one' is neither zero nor model_token",
    ties("tokenizer_source: a+l"): "a model is named here without a LoRA",
    ties().replace("model: c", "model: a"): "models[1]: merges the same model as models[0]; leave out one of them",
    ties().replace("model: c", "model: a+b+c"): "models[1].model: 'a+b+c': a model and one LoRA are written NAME+LORA",
    ties().replace("model: c", "model: a@b@c"): "one revision is written NAME@REVISION",
    ties().replace("model: c", "model: a//c"): "is no name; expected namespace/name, or a folder such as ./model",
    ties().replace("model: c", "model: " + "c" * 501): "a name of 501 characters; at most 500 are read",
    ties().replace("model: c,", "model: c, revision: x,"): "models[1].revision: no such key; a revision is part",
    ties().replace("model: c,", "model: c, lora: x,"): "models[1].lora: no such key; a LoRA is part of the name",
    ties().replace("model: c,", "model: c, density: 1,"): "models[1].density: is a parameter; write it below",
    "{merge_method: multislerp, models: [{model: a}], parameters: {weight: 1, normalize_weights: false}}": (
        "models: multislerp has normalize_weights true alone here"
    ),
    "{merge_method: linear, models: [{model: a}, {model: b, parameters: {weight: -1}}], parameters: "
    "{weight: 1, normalize: false}}": "here the weights must be numbers whose sum is not 0",
    ties().replace("model: a,", "model: ./c,"): "models[1].model: 'c' also stands for the folder ./c; rename that",
    "{merge_method: passthrough, slices: []}": "found none",
    "{merge_method: passthrough, slices: [{sources: [{model: a}]}]}": "layer_range: is None; expected [FIRST, END]",
    "{merge_method: passthrough, slices: [{sources: [{model: a, layer_range: [4, 2]}]}]}": "layer_range: is [4, 2]",
    "{merge_method: passthrough, slices: [{sources: []}]}": "slices[0].sources: names no model",
    "{merge_method: linear, parameters: {weight: 1}, slices: [{sources: [{model: a, layer_range: [0, 2]}, "
    "{model: b, layer_range: [0, 3]}]}]}": "slices[0]: its sources have 2 and 3 layers",
    "{merge_method: ties, base_model: b, parameters: {weight: 1}, slices: [{sources: [{model: a, layer_range: [0, 2]}, "
    "{model: c, layer_range: [1, 3]}]}]}": "slices[0].sources: lacks the base b, and its sources have different layers",
    "{merge_method: linear, modules: [1]}": "modules: is [1]; expected modules by name",
    "{merge_method: linear, modules: {encoder: {models: []}}}": "modules.encoder: has one of models and slices",
    "{merge_method: passthrough, modules: {sight: {models: [{model: a}]}, encoder: {models: [{model: a}]}}}": (
        "modules.sight: no module that is known; known are decoder, encoder"
    ),
    "{merge_method: passthrough, modules: {encoder: {slices: [1]}, decoder: {models: [{model: a}]}}}": (
        "modules.encoder.slices: slices are taken of models that have one module"
    ),
    "{expression: a + b, base_model: b}": "base_model: is b; the expression begins with a",
    "{expression: a + b, models: []}": "models: an expression says it all but the form of the result",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_file_that_means_nothing_is_refused_where_it_does(text: str) -> None:
    with pytest.raises(RecipeFileError) as caught:
        read(text)
    assert WRONG[text] in str(caught.value)


def test_a_file_of_too_many_models_is_refused() -> None:
    models = ", ".join(f"{{model: m{number}}}" for number in range(2049))
    with pytest.raises(RecipeTooLarge, match="2051 terms; at most 2048"):
        read(f"{{merge_method: model_stock, base_model: b, models: [{models}]}}".replace("model_stock", "ram"))


def test_what_has_no_effect_is_told() -> None:
    text = "{merge_method: slerp, base_model: b, name: x, models: [{model: {model: a, override_architecture: X}}], "
    found = read(text + "parameters: {t: 0.2, int8_mask: true, density: 1}}")
    assert found.notes == (
        "models[0].model.override_architecture has no effect: tensors are matched by their names",
        "parameters.int8_mask has no effect: it only changes how mergekit stores signs",
        "parameters.density has no effect: slerp does not use it",
    )


def test_folders_are_named_after_their_last_part() -> None:
    models = [r"E:\merge kit\x y", "./x-y/", "../x-y", "/a/b/c", "~/d", r".\.."]
    listed = ", ".join(f"{{model: '{one}'}}" for one in models)
    found = read(f"{{merge_method: ram, base_model: b, models: [{listed}]}}")
    names = ["x-y", "x-y-2", "x-y-3", "c", "d", "model"]
    assert found.folders == tuple((Ref(name), folder) for name, folder in zip(names, models, strict=True))


def test_the_form_of_the_result_is_read_and_printed() -> None:
    text = ties(
        "dtype: float32\nout_dtype: torch.bfloat16\nas: lora\nchat_template: chatml\ntokenizer:\n  source: a\n"
        "  pad_to_multiple_of: 8\n  tokens:\n    <x>: {source: a, force: true}\n    <y>: {source: {kind: zero}}\n"
        "    <z>: {source: {kind: model_token, model: c, token_id: 3}}\n"
    )
    rows = (
        ("<x>", TokenRow(Ref("a"), is_forced=True)),
        ("<y>", TokenRow(is_zero=True)),
        ("<z>", TokenRow(Ref("c"), token_id=3)),
    )
    recipe = read(text)
    assert recipe.form == Form("F32", "BF16", "lora", TokenizerPolicy(Ref("a"), rows, 8, "chatml"))
    assert recipe.form.result_dtype == "BF16"
    assert read(text_of(recipe)) == recipe


@pytest.mark.parametrize("said", ["drop", "multi", "keep:a", "keep:a@v1"])
def test_a_policy_for_heads_is_read_and_printed(said: str) -> None:
    recipe = read(
        ties(f"heads: {said}").replace("model: a,", "model: a@v1,") if "@" in said else ties(f"heads: {said}")
    )
    assert str(recipe.form.heads) == said
    assert read(text_of(recipe)) == recipe


def test_a_tokenizer_of_the_base_is_called_so() -> None:
    assert read(ties("tokenizer_source: b")).form.tokenizer == TokenizerPolicy("base")
    assert read(ties("tokenizer_source: union")).form.tokenizer == TokenizerPolicy("union")
    assert read(ties("tokenizer_source: d")).references() == (Ref("b"), Ref("a"), Ref("c"), Ref("d"))


REFUSED = {
    "0006": "slices[0]: slerp merges what models have more than a base; name it as base_model",
    "0009": "models_to_merge: no such key",
    "0024": "models[0].density: is a parameter; write it below parameters",
    "0025": "has one of models, slices, modules, which are merged; found none",
    "0026": "parameters.dtype: is no parameter but a key of the file; move it to the top",
    "0029": "slices[0].sources[0].revision: no such key; a revision is part of the name: model: NAME@REVISION",
    "0030": "holds 3 documents, as mergekit-multi reads them",
    "0037": "models: slerp merges what models have more than a base; name it as base_model",
    "0038": "models: slerp merges what models have more than a base; name it as base_model",
    "0042": "slerp: has 2 inputs after its base; it takes 1; its base is LOCAL_PATH/models/Marcoroni-7B-v3",
    "0044": "experts: belongs to mergekit-moe, which makes a mixture of experts",
    "0045": "experts: belongs to mergekit-moe",
    "0046": "experts: belongs to mergekit-moe",
    "0048": "shared_experts: belongs to mergekit-moe",
    "0056": "mapping values are not allowed here, in line 4",
    "0058": "models[0].lora: no such key; a LoRA is part of the name: model: NAME+LORA",
    "0060": "default_n_val: no such key",
    "0062": "merge_method: dare: no such merge method; did you mean dare_ties?",
}
"""Files of the corpus that are refused, and why: what mergekit refuses too, other tools' files, and misplaced keys."""


@pytest.mark.parametrize("file", sorted(CORPUS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_real_file_is_read_or_refused_with_a_sentence(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    if file.stem in REFUSED:
        with pytest.raises(RecipeFileError) as caught:
            read(text)
        assert REFUSED[file.stem] in str(caught.value)
        return
    recipe = read(text)
    assert parse(str(recipe)).root == recipe.root
    assert read(text_of(recipe)) == recipe


def test_the_table_of_refused_files_is_of_files_that_are_there() -> None:
    assert REFUSED.keys() <= {file.stem for file in CORPUS.glob("*.yaml")}
