"""`merge tune-weights` on local folders: by examples, by a command, by a URL; ended and gone on with."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.hub.serving import models

TEXTS = ["the quick brown fox", "jumps over", "the lazy dog"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a causal model, two LoRAs on it, and held-out texts."""
    folder = tmp_path_factory.mktemp("tuned")
    base = models.llama(folder / "base")
    models.lora(base, folder / "a", seed=1)
    models.lora(base, folder / "b", seed=2)
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def inputs(folder: Path, *names: str) -> list[str]:
    return [word for name in names for word in ("--input", f"{name}={folder / name}")]


def test_weights_are_searched_on_held_out_texts(command: Command, tuned: Path, tmp_path: Path) -> None:
    asked = ["merge", "tune-weights", "base + 0.5*a + 0.5*b", "--task", str(tuned / "texts.jsonl"), "--json"]
    asked += [*inputs(tuned, "base", "a", "b"), "--journal", str(tmp_path / "journal.jsonl")]
    ended = command(*asked, "--evaluations", "7")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["start"]["expression"] == "base + 0.5*a + 0.5*b"
    assert found["score"] <= found["start"]["score"]
    assert (found["evaluations"], found["measure"]) == (7, "loss")
    assert "7/7" in ended.err
    out = command("merge", "run", found["recipe"], *inputs(tuned, "base", "a", "b"), "--out", str(tmp_path / "out"))
    assert out.code == 0, out.err
    assert (tmp_path / "out" / "recipe.json").is_file()
    longer = json.loads(command(*asked, "--evaluations", "9").out)
    assert longer["evaluations"] == 9
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines[1:]] == list(range(9))
    other = command(*asked, "--seed", "1")
    assert other.code == 4
    assert "another search" in other.err


def test_entropy_takes_texts_without_answers(command: Command, tuned: Path) -> None:
    asked = [
        "merge",
        "tune-weights",
        "base + a",
        "--task",
        str(tuned / "texts.jsonl"),
        "--entropy",
        "--evaluations",
        "3",
    ]
    found = json.loads(command(*asked, "--optimiser", "spsa", *inputs(tuned, "base", "a"), "--json").out)
    assert found["measure"] == "entropy"
    assert found["score"] <= found["start"]["score"]


def test_a_command_scores_the_merged_folder(command: Command, tuned: Path, tmp_path: Path) -> None:
    script = tmp_path / "score.py"
    script.write_text(
        "import json, pathlib, sys\n"
        "asked = json.load(sys.stdin)\n"
        "assert pathlib.Path(sys.argv[1], 'model.safetensors').is_file() and asked['folder'] == sys.argv[1]\n"
        "print('talk')\n"
        "print(-abs(asked['point']['a'] - 0.25))\n"
    )
    asked = ["merge", "tune-weights", "base + a", "--command", f"{sys.executable} {script} {{folder}}", "--json"]
    ended = command(*asked, "--larger-is-better", "--evaluations", "25", *inputs(tuned, "base", "a"))
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["point"]["a"] == pytest.approx(0.25, abs=0.02)


@pytest.fixture
def judge() -> Iterator[str]:
    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"score": (asked["point"]["a"] - 0.25) ** 2}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_judge_is_reached_only_when_that_is_allowed(command: Command, tuned: Path, judge: str) -> None:
    asked = ["merge", "tune-weights", "base + a", "--judge", judge, "--json", "--evaluations", "25"]
    refused = command(*asked, *inputs(tuned, "base", "a"))
    assert (refused.code, "--allow-network" in refused.err) == (2, True)
    ended = command(*asked, "--allow-network", *inputs(tuned, "base", "a"))
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["point"]["a"] == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("more", "code", "told"),
    [
        ([], 2, "say what scores"),
        (["--command", "true", "--entropy"], 2, "--entropy"),
        (["--command", "true"], 4, "a number"),
        (["--command", "false"], 1, "ended with 1"),
        (["--command", "true", "--weights", "1"], 2, "LOW:HIGH"),
        (["--command", "true", "--param", "density"], 4, "no method"),
        (["--command", "true", "--optimiser", "adam"], 4, "no such optimiser"),
    ],
)
def test_what_makes_no_search_is_refused(command: Command, tuned: Path, more: list[str], code: int, told: str) -> None:
    ended = command("merge", "tune-weights", "base + a", *more, *inputs(tuned, "base", "a"))
    assert ended.code == code, ended.err
    assert told in ended.err


def test_a_curve_is_gain_against_retention_and_its_knee_a_recipe(command: Command, tuned: Path, tmp_path: Path) -> None:
    (tmp_path / "keep.jsonl").write_text(json.dumps({"text": "something else"}) + "\n")
    asked = [
        "merge",
        "curve",
        "base",
        "a",
        "--gain",
        str(tuned / "texts.jsonl"),
        "--keep",
        str(tmp_path / "keep.jsonl"),
    ]
    asked += ["--ladder", "0.02,0.05,0.1", *inputs(tuned, "base", "a")]
    ended = command(*asked, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    points = found["points"]
    assert [one["strength"] for one in points] == [0.0, 0.02, 0.05, 0.1]
    assert (points[0]["gain"], points[0]["retention"]) == (0.0, 0.0)
    scores = json.loads(
        command(
            *["merge", "tune-weights", "base + 0.05*a", "--task", str(tuned / "texts.jsonl"), "--evaluations", "1"],
            *[*inputs(tuned, "base", "a"), "--json"],
        ).out
    )
    assert points[2]["gain_score"] == scores["score"]
    assert points[2]["gain"] == pytest.approx(points[0]["gain_score"] - scores["score"])
    assert found["recipe"] == f"base + {found['knee']:g}*a"
    table = command(*asked)
    assert "above the chord" in table.out


def test_a_ladder_has_strengths_above_zero(command: Command, tuned: Path) -> None:
    texts = str(tuned / "texts.jsonl")
    asked = ["merge", "curve", "base", "a", "--gain", texts, "--keep", texts, *inputs(tuned, "base", "a")]
    ended = command(*asked, "--ladder", "0.5,-1")
    assert (ended.code, "--ladder" in ended.err) == (2, True)
