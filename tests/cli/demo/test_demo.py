"""The whole demo at its small size, as a process: from nothing to the table."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_demo_trains_pushes_merges_ports_asks_and_measures(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ADAPTERHUB_", "HF_"))}
    command = [sys.executable, "-m", "adapterhub.cli", "demo", "--fast", "--data", str(tmp_path / "demo")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    for row in ("base + code", "0.7 code + 0.5 licences", "v2 + code (ported)", "v2 + licences (fresh)"):
        assert re.search(rf"^ *{re.escape(row)}( +\d\.\d{{3}}){{6}}", told, re.MULTILINE), row
    for row in ("digits + inverted", "v2 + rotated (ported)"):
        assert re.search(rf"^ *{re.escape(row)}( +\d+\.\d%){{5}}", told, re.MULTILINE), row
    both, one_lora = (_numbers(told, row) for row in ("0.7 code + 0.5 licences", "the same, as one LoRA"))
    assert one_lora == pytest.approx(both, abs=0.002)
    assert "adapterhub serve --data" in told


def _numbers(told: str, row: str) -> list[float]:
    found = re.search(rf"^ *{re.escape(row)}([\d. ]+)$", told, re.MULTILINE)
    assert found, row
    return [float(number) for number in found.group(1).split()]
