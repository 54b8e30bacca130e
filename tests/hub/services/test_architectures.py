"""A LoRA on each architecture through the hub: accepted by push, told by its facts, merged by a job as by peft."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from adapterhub.hub.context import Hub
from adapterhub.hub.services import describe, merges
from adapterhub.hub.services.access import Caller
from adapterhub.hub.services.commits import AddRegular
from tests.hub.services.test_merges import content, push, run
from tests.hub.serving.test_architectures import base_of, tuned_on
from tests.merging.exactness.architectures import ARCHITECTURES
from tests.merging.exactness.conftest import QUICK

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False but the target module is `Conv1D`"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ARCHITECTURES]


def files(folder: Path) -> list[AddRegular]:
    return [AddRegular(one.name, one.read_bytes()) for one in sorted(folder.iterdir()) if one.is_file()]


@pytest.mark.parametrize("name", EVERY)
def test_a_lora_is_pushed_described_and_merged(
    hub: Hub, user: Callable[..., Caller], name: str, tmp_path: Path
) -> None:
    architecture, ann = ARCHITECTURES[name], user("ann")
    (hub.settings.data / "spool").mkdir(exist_ok=True)
    base = base_of(architecture, tmp_path / "base")
    merged = tuned_on(architecture, base, tmp_path / "lora")
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(config.read_text().replace("tiny/base", "ann/base"))
    push(hub, ann, "ann/base", files(base))
    push(hub, ann, "ann/lora", files(tmp_path / "lora"))

    model, patch = (describe.repo_view(hub, ann, f"ann/{one}") for one in ("base", "lora"))
    assert (model["kind"], patch["kind"]) == ("model", "lora")
    assert patch["base"]["repository"] == "ann/base"
    assert patch["patches"][0]["rank_max"] == 2

    job = run(hub, merges.request(hub, ann, "ann/base + ann/lora", push="ann/both"))
    assert job.error is None
    (tmp_path / "both").mkdir()
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "both" / file).write_bytes(content(hub, ann, "ann/both", file))
    found = architecture.loader.from_pretrained(tmp_path / "both").state_dict()
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
