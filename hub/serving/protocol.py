"""The one protocol between the service and whatever computes: what may be asked, and what is answered.

The embedded engine speaks it over a socket to its child process, see `frames.py`; another engine implements `Engine` in
its own way. Everything here is plain data: an engine never sees the database, an account or a right. Never imports
torch.
"""

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from adapterhub.errors import AdapterHubError
from adapterhub.hub import errors
from adapterhub.merging.checkpoint import MappedFolder

Json = dict[str, Any]

MERGED, RUN_TIME = "merged", "run-time"
"""The ways of execution: the patches are in the weights, or beside them."""


@dataclass(frozen=True)
class Source:
    """One input of a recipe: the reference that stands for it in the recipe's text, and its files.

    name: as resolved, "ns/name@commit". kind: "model" or a patch kind. path: its folder inside the repository.
    """

    reference: str
    name: str
    kind: str
    folder: MappedFolder
    path: str = ""

    def to_json(self) -> Json:
        """A JSON object that `from_json` turns into an equal source."""
        return {**vars(self), "folder": self.folder.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Source":
        return cls(**{**value, "folder": MappedFolder.from_json(value["folder"])})


@dataclass(frozen=True)
class Endpoint:
    """Another OpenAI-compatible server that computes a model. logprobs: how many it is asked for at each token."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    logprobs: int = 20


@dataclass(frozen=True)
class VariantSpec:
    """What is to be served: a recipe and the files of its inputs. The base stands first among the sources.

    vid: the recipe's digest, under which the result is kept; two specs of one vid yield the same weights.
    expression: the recipe's text, as `adapterhub.merging.recipes` prints and parses it. composition: of models that
    answer together; the sources are then those of the first. endpoint: who computes it, as a member of a composition,
    where that is not done here.
    """

    vid: str
    expression: str
    sources: tuple[Source, ...]
    composition: "Composition | None" = None
    endpoint: Endpoint | None = None

    @property
    def models(self) -> tuple["VariantSpec", ...]:
        """What is in memory to serve it: the members of a composition, else itself."""
        return (self,) if self.composition is None else self.composition.members

    @property
    def base(self) -> Source:
        return self.sources[0]

    @property
    def is_base_alone(self) -> bool:
        """Whether nothing is to be merged."""
        return self.expression == self.base.reference

    @property
    def label(self) -> str:
        """What it is called for people: with commits where it is one patch on its base, else the recipe's text."""
        patches = self.sources[1:]
        is_one = len(patches) == 1 and self.expression == f"{self.base.reference} + {patches[0].reference}"
        return f"{self.base.name} + {patches[0].name}" if is_one else self.expression

    @property
    def base_digest(self) -> str:
        """sha256 over the names and digests of the files that a model is loaded from: the key of a resident base."""
        folder = self.base.folder
        lines = (
            f"{name}\0{folder.digest(name)}\n"
            for name in folder.names()
            if not name.endswith((".md", ".gitattributes"))
        )
        return "sha256:" + hashlib.sha256("".join(lines).encode() + self.base.path.encode()).hexdigest()

    def to_json(self) -> Json:
        """A JSON object that `from_json` turns into an equal spec."""
        sources = [source.to_json() for source in self.sources]
        more = {} if self.composition is None else {"composition": self.composition.to_json()}
        more |= {} if self.endpoint is None else {"endpoint": vars(self.endpoint)}
        return {"vid": self.vid, "expression": self.expression, "sources": sources, **more}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "VariantSpec":
        composition = Composition.from_json(value["composition"]) if "composition" in value else None
        endpoint = Endpoint(**value["endpoint"]) if "endpoint" in value else None
        sources = tuple(map(Source.from_json, value["sources"]))
        return cls(value["vid"], value["expression"], sources, composition, endpoint)


@dataclass(frozen=True)
class Composition:
    """How models answer together: at each step an operator of `adapterhub.merging.decoding` makes one of their logits.

    parameters: of the operator, by name. members: in the operator's order. weights: one for each of its others, which
    come last among the members.
    """

    operator: str
    parameters: Mapping[str, float | bool | str]
    weights: tuple[float, ...]
    members: tuple[VariantSpec, ...]

    def to_json(self) -> Json:
        """A JSON object that `from_json` turns into an equal composition."""
        return {**vars(self), "members": [one.to_json() for one in self.members]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Composition":
        members = tuple(map(VariantSpec.from_json, value["members"]))
        return cls(value["operator"], value["parameters"], tuple(value["weights"]), members)


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature 0 takes the likeliest; top_p in (0, 1] keeps the likeliest that sum to it, and
    top_k so many before.

    repetition_penalty: what logits of tokens of the prompt and the answer are divided by, or multiplied with below 0.
    presence_penalty and frequency_penalty are subtracted from the logits of tokens generated before, once and by their
    count. logit_bias: added to the logit of a token id. seed: None draws one.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class Generate:
    """A request for text: either a prompt, as text or as token ids, or the messages of a chat.

    max_tokens: None generates to the end of the model's context. n: answers to the same prompt. stop: texts that end an
    answer and are not part of it. logprobs: None, or how many alternatives to tell at each token. echo: repeat the
    prompt before the answer. json_schema: what the answer must follow. tools: what a chat's answer may call, as OpenAI
    describes them. must_call: the names of those of which it calls one, and says nothing else; empty leaves it free.
    execution: MERGED or RUN_TIME, None for what is cheaper now.
    """

    prompt: str | Sequence[int] | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    max_tokens: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    echo: bool = False
    json_schema: Mapping[str, Any] | None = None
    execution: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    must_call: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Generate":
        sampling = dict(value["sampling"])
        # JSON has no integer keys
        sampling["logit_bias"] = {int(token): bias for token, bias in sampling["logit_bias"].items()}
        tuples = {name: tuple(value[name]) for name in ("stop", "tools", "must_call")}
        return cls(**{**value, **tuples, "sampling": Sampling(**sampling)})


@dataclass(frozen=True)
class TokenLogprob:
    """One token, its log probability under the model (None for a prompt's first), and the likeliest in its place.

    text: of this token alone. top: (text, log probability) pairs. id, top_ids: in the model's vocabulary, -1 and none
    where nobody tells.
    """

    text: str
    logprob: float | None
    top: Sequence[tuple[str, float]] = ()
    id: int = -1
    top_ids: Sequence[int] = ()


@dataclass(frozen=True)
class Started:
    """The first event of a generation. execution_id: what computed what; materialise_ms: time spent on the variant."""

    prompt_tokens: int
    execution_id: str
    materialise_ms: float


@dataclass(frozen=True)
class Delta:
    """A further piece of answer `index`; text may be empty while a character or a stop text is incomplete."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Called:
    """A further piece of call `number`, counted from 0, that answer `index` makes of a tool.

    name: of the tool, in the first piece alone. arguments: JSON text, which the pieces make together.
    """

    index: int
    number: int
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True)
class Finished:
    """Answer `index` is complete. reason: "stop" or "length". completion_tokens: generated for it. by_text: whether a
    stop text ended it. prompt_tokens: those that were not known when it started."""

    index: int
    reason: str
    completion_tokens: int
    by_text: bool = False
    prompt_tokens: int = 0


Event = Started | Delta | Called | Finished


@dataclass(frozen=True)
class Task:
    """A request for something else than text.

    task: "embeddings", "feature-extraction", "text-classification", "token-classification", "fill-mask",
    "image-classification", "audio-classification", "automatic-speech-recognition", "text-to-speech". inputs: text
    or texts, or for embeddings token ids of each; media: the bytes of an image or sound file instead.
    parameters: of the task, as the Hugging Face inference API names them.
    """

    task: str
    inputs: str | Sequence[str] | Sequence[Sequence[int]] | None = None
    media: bytes | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What a task yields, in the shape of the Hugging Face inference API."""

    output: Any
    execution_id: str


class Engine(Protocol):
    """Whatever computes answers. Every method raises EngineUnavailable when the engine is lost meanwhile,
    Overloaded when its queues or its memory are full, UnfitPatch and InvalidRequest for what it refuses."""

    async def load(self, spec: VariantSpec, *, pinned: bool = False) -> Json:
        """Make the variant resident, once however often it is asked; answers what it takes: see `state`.

        pinned: keep it for good, also when the engine starts again.
        """

    def generate(self, spec: VariantSpec, request: Generate) -> AsyncIterator[Event]:
        """Started once, then Delta, Called and Finished of each answer. Closing the iterator cancels the generation."""

    async def task(self, spec: VariantSpec, request: Task) -> Answer:
        """The answer to a task; cancelling the call cancels the work."""

    async def state(self) -> Json:
        """Process, device, resident bases and variants with their bytes, counts of hits, loads and evictions."""


class EngineHandle(Engine, Protocol):
    """An engine with a life of its own, which belongs to the one event loop that uses it."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be asked now."""

    async def start(self) -> None:
        """Make it ready; returns at once. May be called repeatedly."""

    async def stop(self) -> None:
        """End it. May be called repeatedly."""

    async def probe(self) -> int:
        """How many bases are in memory and fit to answer, each looked at. Raises EngineUnavailable where one is not."""

    def generate(self, spec: VariantSpec, request: Generate) -> AsyncGenerator[Event, None]: ...


_EVENTS: Mapping[str, type[Event]] = {"started": Started, "delta": Delta, "called": Called, "finished": Finished}
_EVENT_NAMES = {kind: name for name, kind in _EVENTS.items()}


def event_to_json(event: Event) -> Json:
    """The event's fields and its name under "event"."""
    return {"event": _EVENT_NAMES[type(event)], **asdict(event)}


def event_from_json(value: Mapping[str, Any]) -> Event | None:
    """The event that `event_to_json` wrote; None for an answer of another kind."""
    kind = _EVENTS.get(value["event"])
    if kind is None:
        return None
    fields = {key: item for key, item in value.items() if key not in ("event", "id")}
    if kind is Delta:
        logprobs = fields["logprobs"]
        fields["logprobs"] = tuple(TokenLogprob(**one) for one in logprobs)
    return kind(**fields)


_REFUSALS: Mapping[str, type[errors.HubError]] = {
    kind.__name__: kind
    for kind in (
        errors.EngineUnavailable,
        errors.InvalidRequest,
        errors.ModelNotFound,
        errors.Overloaded,
        errors.TooLarge,
        errors.UnfitPatch,
    )
}


def error_to_json(error: AdapterHubError) -> Json:
    """The error as an answer: its code and text."""
    return {"event": "error", "code": type(error).__name__, "message": str(error)}


def error_from_json(value: Mapping[str, Any]) -> errors.HubError:
    """The error that `error_to_json` wrote; EngineUnavailable for a code that this side does not know."""
    return _REFUSALS.get(value["code"], errors.EngineUnavailable)(value["message"])
