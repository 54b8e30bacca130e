"""The demo from beginning to end: train, push, show, merge, port, ask, measure, tell.

From the push on everything goes through public clients: huggingface_hub, the adapterhub command, openai, peft and
transformers on what was downloaded. No number is written down beforehand.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from adapterhub.cli.demo import digits, scores, service, works
from adapterhub.cli.demo.errors import DemoFailed
from adapterhub.cli.demo.scores import Row
from adapterhub.cli.demo.screen import Screen
from adapterhub.cli.demo.service import Service
from adapterhub.cli.demo.works import Sizes
from adapterhub.cli.demo.workshop import Workshop

BOTH = "demo/base + 0.7*demo/code + 0.5*demo/licences"
TURNED = "demo/digits + 0.6*demo/rotated + 0.6*demo/mirrored"

MERGES: Mapping[str, tuple[str, ...]] = {
    "both": (BOTH,),
    "both-lora": (BOTH, "--as", "lora"),
    "both-ties": ("ties(demo/base; 1.0*demo/code, 1.0*demo/licences, density=0.3)",),
    "base-names": ("demo/base + demo/names",),
    "base-docstrings": ("demo/base + demo/docstrings",),
    "all-kinds": ("demo/base + 0.7*demo/code + 0.7*demo/names + 0.7*demo/docstrings",),
    "turned": (TURNED,),
}
"""Repository that takes the result -> expression and options of `adapterhub merge run`."""

SERVED = "as served"
"""Column of what the running server answered, on the first images of the row's own task."""

PORTS: Mapping[str, str] = {"code": "base-v2", "licences": "base-v2", "rotated": "digits-v2"}
"""Patch -> the version 2 that it is carried to."""


@dataclass(frozen=True)
class Measured:
    """A row to be: what is loaded, from downloads alone. adapter: (repository, revision) that peft attaches."""

    name: str
    repo: str
    adapter: tuple[str, str] | None = None
    served: tuple[str, str] | None = None
    """What the server is asked instead: (model, the task whose images it is asked)."""
    ends_section: bool = False


class Story:
    """The demo on a running server. Each method is a stage; they are told in the order of `tell`."""

    def __init__(self, screen: Screen, shop: Workshop, server: Service, made: Path, sizes: Sizes) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()
        self._screen, self._shop, self._server, self._made, self._sizes = screen, shop, server, made, sizes
        self._hub = HfApi(endpoint=server.url, token=server.token)
        self._downloads: dict[tuple[str, str], Path] = {}

    def tell(self) -> None:
        """All stages. Raises DemoFailed, and what the clients raise."""
        self.push()
        self.show()
        self.merge()
        branches = self.port()
        self.ask()
        self.measure(branches)

    def push(self) -> None:
        """Push every folder with huggingface_hub, unmodified, as to any hub."""
        self._screen.heading("Push all of it with huggingface_hub")
        with self._screen.counting("pushed", len(works.WORKS)) as pushed:
            for work in works.WORKS:
                self._hub.create_repo(work.repo_id, exist_ok=True)
                self._hub.upload_folder(repo_id=work.repo_id, folder_path=self._made / work.name)
                pushed()
        self._screen.say(f"{len(works.WORKS)} repositories are at {self._server.url}")

    def show(self) -> None:
        """Show what the hub understood of it."""
        self._screen.heading("What the hub knows of them")
        self._screen.output(self._adapterhub("patch", "list"))
        self._screen.output(self._adapterhub("patch", "show", "demo/code"))

    def merge(self) -> None:
        """Merge by expressions; each result is a repository with its recipe."""
        self._screen.heading("Merge by expressions")
        for name, (expression, *options) in MERGES.items():
            self._screen.output(self._adapterhub("merge", "run", expression, *options, "--push", f"demo/{name}"))

    def port(self) -> dict[str, str]:
        """Carry patches to version 2 of their base; the branch that each went to, by the patch's name."""
        self._screen.heading("Carry patches to version 2 of their base, without training")
        branches = {}
        for name, target in PORTS.items():
            self._screen.output(self._adapterhub("port", "run", f"demo/{name}", "--to", f"demo/{target}", "--push"))
            branches[name] = f"ported/{target}-{works.fingerprint_of(self._made / target).removeprefix('sha256:')[:8]}"
        return branches

    def ask(self) -> None:
        """Ask variants that nobody has stored: the model's name is an expression."""
        from openai import OpenAI

        self._screen.heading("Ask served variants with the openai client")
        client = OpenAI(base_url=f"{self._server.url}/v1", api_key=self._server.token, max_retries=2)
        for model, prompt in (
            ("demo/base:demo/code", "    def __init__(self"),
            ("demo/base:demo/licences", "Redistribution and use in"),
            (BOTH, "The copyright"),
        ):
            answer = client.completions.create(model=model, prompt=prompt, max_tokens=96, temperature=0.6, seed=1)
            self._screen.say(model, style="cyan")
            self._screen.output(prompt + answer.choices[0].text)
        stream = client.chat.completions.create(
            model="demo/base-v2",
            messages=[{"role": "user", "content": "The statement"}],
            max_tokens=96,
            temperature=0.6,
            seed=1,
            stream=True,
        )
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
        self._screen.say(f"demo/base-v2, streamed in {len(pieces)} pieces", style="cyan")
        self._screen.output("The statement" + "".join(pieces))

    def measure(self, branches: Mapping[str, str]) -> None:
        """Download everything that was made, measure it on what no training saw, and tell what the numbers say."""
        self._screen.heading("Measure what was downloaded on text and images that no training saw")
        texts, images = self._measured(_language_rows(branches), _vision_rows(branches))
        kinds = list(texts[0].values)
        self._screen.scores("Loss in nats per byte, held-out text (less is better)", kinds, texts, "{:.3f}".format)
        columns = [*digits.TASKS, SERVED]
        self._screen.scores("Held-out digits named rightly (more is better)", columns, images, "{:.1%}".format)
        self._screen.say("")
        for sentence in _sentences({row.name: row for row in texts}, {row.name: row for row in images}):
            self._screen.say(sentence)

    def _measured(self, language: Sequence[Measured], vision: Sequence[Measured]) -> tuple[list[Row], list[Row]]:
        """Both tables' rows: the workshop measures while the server is asked for what only it can answer."""
        held_out = self._sizes.held_out_bytes
        texts = [self._shop.call(works.measure_language, *self._loaded(one), held_out) for one in language]
        images = [self._shop.call(works.measure_vision, *self._loaded(one)) for one in vision]
        served = [self._served(*one.served) if one.served else {} for one in vision]
        with self._screen.counting("measured", len(texts) + len(images)) as measured:
            return (
                [
                    Row(one.name, _counted(future, measured), -1, one.ends_section)
                    for one, future in zip(language, texts, strict=True)
                ],
                [
                    Row(one.name, _counted(future, measured) | answers, 1, one.ends_section)
                    for one, future, answers in zip(vision, images, served, strict=True)
                ],
            )

    def _loaded(self, one: Measured) -> tuple[Path, Path | None]:
        model = self._download(one.repo, "main")
        return model, self._download(*one.adapter) if one.adapter else None

    def _download(self, name: str, revision: str) -> Path:
        """A snapshot by huggingface_hub, once a revision, into a folder of its own."""
        if (name, revision) not in self._downloads:
            folder = self._server.data.parent / "downloads" / name / quote(revision, safe="")
            self._hub.snapshot_download(f"demo/{name}", revision=revision, local_dir=folder)
            self._downloads[name, revision] = folder
        return self._downloads[name, revision]

    def _served(self, model: str, task: str) -> dict[str, float]:
        """How many of the first held-out images of a task the served model names rightly, asked one by one."""
        from huggingface_hub import InferenceClient

        client = InferenceClient(token=self._server.token)
        url = f"{self._server.url}/models/{quote(model)}"
        asked = works.split().test.as_task(task).first(self._sizes.asked_images)
        answers = (client.image_classification(asked.png(index), model=url) for index in range(len(asked.labels)))
        right = [answer[0].label == str(label) for answer, label in zip(answers, asked.labels, strict=True)]
        return {SERVED: sum(right) / len(right)}

    def _adapterhub(self, *arguments: str) -> str:
        """What the adapterhub command prints to stdout. Raises DemoFailed with what it says when it fails."""
        self._screen.command(shlex.join(["adapterhub", *arguments]))
        done = subprocess.run(
            [sys.executable, "-m", "adapterhub.cli", *arguments],
            env=self._server.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise DemoFailed(f"{shlex.join(['adapterhub', *arguments])} ended with {done.returncode}: {done.stderr}")
        return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def _counted(future: Future[dict[str, float]], counted: Callable[[], None]) -> dict[str, float]:
    result = future.result()
    counted()
    return result


def _language_rows(branches: Mapping[str, str]) -> list[Measured]:
    return [
        Measured("base", "base"),
        Measured("base + code", "base", ("code", "main")),
        Measured("base + licences", "base", ("licences", "main")),
        Measured("base + names (sparse)", "base-names"),
        Measured("base + docstrings (mask)", "base-docstrings", ends_section=True),
        Measured("0.7 code + 0.5 licences", "both"),
        Measured("the same, as one LoRA", "base", ("both-lora", "main")),
        Measured("ties(code, licences)", "both-ties"),
        Measured("0.7 (all three kinds)", "all-kinds", ends_section=True),
        Measured("base-v2", "base-v2"),
        Measured("v2 + code (ported)", "base-v2", ("code", branches["code"])),
        Measured("v2 + code (fresh)", "base-v2", ("code-for-v2", "main")),
        Measured("v2 + licences (ported)", "base-v2", ("licences", branches["licences"])),
        Measured("v2 + licences (fresh)", "base-v2", ("licences-for-v2", "main")),
    ]


def _vision_rows(branches: Mapping[str, str]) -> list[Measured]:
    ported = f"demo/digits-v2 + demo/rotated@{branches['rotated']}"
    return [
        Measured("digits", "digits", served=("demo/digits", "upright")),
        Measured("digits + rotated", "digits", ("rotated", "main"), ("demo/digits:demo/rotated", "rotated")),
        Measured("digits + mirrored", "digits", ("mirrored", "main"), ("demo/digits:demo/mirrored", "mirrored")),
        Measured("digits + inverted", "digits", ("inverted", "main"), ("demo/digits:demo/inverted", "inverted"), True),
        Measured("0.6 rotated + 0.6 mirrored", "turned", None, (TURNED, "rotated"), True),
        Measured("digits-v2", "digits-v2", None, ("demo/digits-v2", "upright")),
        Measured("v2 + rotated (ported)", "digits-v2", ("rotated", branches["rotated"]), (ported, "rotated")),
        Measured("v2 + rotated (fresh)", "digits-v2", ("rotated-for-v2", "main")),
    ]


def _sentences(texts: Mapping[str, Row], images: Mapping[str, Row]) -> list[str]:
    """What the numbers say, worked out from them alone."""
    base, v2, both = texts["base"], texts["base-v2"], texts["0.7 code + 0.5 licences"]
    digits_v2, turned = images["digits-v2"], images["0.6 rotated + 0.6 mirrored"]
    return [
        "Interference between patches:",
        *("  " + scores.interference(task, base, texts[f"base + {task}"], both) for task in ("code", "licences")),
        *(
            "  " + scores.interference(task, images["digits"], images[f"digits + {task}"], turned)
            for task in ("rotated", "mirrored")
        ),
        "Ports to version 2:",
        *(
            "  " + scores.portability(task, v2, texts[f"v2 + {task} (ported)"], texts[f"v2 + {task} (fresh)"])
            for task in ("code", "licences")
        ),
        "  "
        + scores.portability(
            "rotated",
            digits_v2,
            images["v2 + rotated (ported)"],
            images["v2 + rotated (fresh)"],
        ),
    ]


def run(keep: bool, data: Path, fast: bool) -> None:
    """The demo in the folder `data`. Raises DemoFailed, and what the clients and the workshop raise."""
    sizes = works.FAST if fast else works.FULL
    screen = Screen()
    data = data.absolute()
    made = data / "made"
    made.mkdir(parents=True, exist_ok=True)
    with Workshop() as shop:
        screen.heading("Train two small models, patches of three kinds on them, and a version 2 of each")
        with screen.training([work.name for work in works.WORKS]) as show:
            shop.make(works.WORKS, made, sizes, show)
        screen.heading("Start a server: adapterhub serve")
        with service.started(data, keep=keep) as server:
            Story(screen, shop, server, made, sizes).tell()
            screen.heading(f"Done in {screen.elapsed_s:.0f} s")
            _tell_where(screen, server, keep)


def _tell_where(screen: Screen, server: Service, keep: bool) -> None:
    token = server.data.parent / "token"
    if keep:
        screen.say(f"Browse what was made at {server.url} (token of user demo: {token})")
        screen.say(f"The server keeps running as process {server.process.pid}; stop it with: kill {server.process.pid}")
    else:
        screen.say("Browse what was made: start the server on the same data, then open http://127.0.0.1:8000")
        screen.command(f"adapterhub serve --data {server.data}")
