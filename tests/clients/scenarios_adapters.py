"""What users of AdapterHub's `adapters` library do, each function run in an environment of its own: see `scenarios.py`.

The library pins a transformers and a huggingface_hub of the past; nothing of this project is imported here.
"""

import sys
from typing import Any


def adapters_on_a_base(repo_id: str) -> None:
    import torch
    from adapters import AutoAdapterModel, BertAdapterModel, get_adapter_info, list_adapters
    from huggingface_hub import HfApi
    from transformers import BertConfig

    api = HfApi()
    base_id, adapter_id = f"{repo_id}-base", f"{repo_id}-adapter"
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    BertAdapterModel(config).push_to_hub(base_id)
    tokens = torch.arange(8)[None]

    def answers(model: Any) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = model.eval()(tokens).logits
        return found

    def randomise(model: Any, name: str) -> None:
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                torch.nn.init.normal_(parameter, std=0.2)

    trained: Any = AutoAdapterModel.from_pretrained(base_id)
    expected = {}
    for name, kind in (("bottleneck", "seq_bn"), ("lora", "lora")):
        trained.add_adapter(name, config=kind)
        trained.add_classification_head(name, num_labels=3)
        randomise(trained, name)
        trained.set_active_adapters(name)
        expected[name] = answers(trained)
        trained.push_adapter_to_hub(f"{adapter_id}-{name}", name, adapter_card_kwargs={"license": "apache-2.0"})
    assert not torch.allclose(expected["bottleneck"], expected["lora"])

    for name, logits in expected.items():
        fresh: Any = AutoAdapterModel.from_pretrained(base_id)
        loaded = fresh.load_adapter(f"{adapter_id}-{name}", set_active=True, version="main")
        assert loaded == name
        torch.testing.assert_close(answers(fresh), logits)
        information = api.model_info(f"{adapter_id}-{name}")
        assert {"adapter-transformers", "adapters", "bert", "license:apache-2.0"} <= set(information.tags or [])
        found = get_adapter_info(f"{adapter_id}-{name}")
        assert found is not None
        assert (found.model_name, found.sha1_checksum) == (base_id, information.sha)
    mine = {one.adapter_id for one in list_adapters(model_name=base_id)}
    assert mine == {f"{adapter_id}-{name}" for name in expected}


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
