"""A model that another OpenAI-compatible server computes, as a member of a composition: it is asked for the log
probabilities of the next token, and the rest is done here.

Of a list that is shorter than the vocabulary, what it leaves is spread evenly over the tokens that it does not name,
none above the least that it does: a distribution that agrees with all that was told, and an approximation.
Imports torch: only an engine's process loads this.
"""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from torch import Tensor

from adapterhub.hub.errors import EngineUnavailable, InvalidRequest, Overloaded
from adapterhub.hub.serving import loading
from adapterhub.hub.serving.loading import Loaded
from adapterhub.hub.serving.protocol import Endpoint, VariantSpec
from adapterhub.hub.serving.rooms import Room
from adapterhub.hub.serving.scheduler import Stage

ASK_S = 120.0
_PREFIX = "token_id:"


class RemoteModel:
    """Stands where a transformers model stands, and is asked instead of computed."""

    def __init__(self, name: str, endpoint: Endpoint, config: Any) -> None:
        self.config = config
        self.generation_config = None
        self.device = torch.device("cpu")
        self._name = name
        self._endpoint = endpoint
        key = endpoint.api_key
        self._http = httpx.Client(
            base_url=endpoint.url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(ASK_S, connect=5.0),
            follow_redirects=False,
            trust_env=False,
        )
        self._threads = ThreadPoolExecutor(16, thread_name_prefix="endpoint")  # none of them computes

    def can_generate(self) -> bool:
        return True

    def generate(self) -> None:
        """Never called; that it is there says what kind of model this is."""

    def forward(self, input_ids: Tensor, past_key_values: Any, use_cache: bool) -> None:
        """Never called; its parameters say what kind of model this is."""

    def get_input_embeddings(self) -> Any:
        return SimpleNamespace(num_embeddings=self.config.get_text_config().vocab_size)

    def get_output_embeddings(self) -> None:
        """Nothing: it is elsewhere."""

    def ask(self, tokens: Sequence[int]) -> "Future[Tensor]":
        """The logits of the token after these, float32 (vocabulary,), once they are there.

        In place of them EngineUnavailable, Overloaded, InvalidRequest.
        """
        return self._threads.submit(lambda: spread(self._asked(tokens), self._vocabulary, self._name))

    @property
    def _vocabulary(self) -> int:
        found: int = self.get_input_embeddings().num_embeddings
        return found

    def _asked(self, tokens: Sequence[int]) -> Mapping[int, float]:
        body = {
            "model": self._endpoint.model,
            "prompt": list(tokens),
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": self._endpoint.logprobs,
            "return_tokens_as_token_ids": True,
        }
        try:
            reply = self._http.post("completions", json=body)
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"{self._name}: its endpoint does not answer: {type(error).__name__}") from error
        if reply.status_code in (429, 503):
            raise Overloaded(f"{self._name}: its endpoint is busy ({reply.status_code}); try again in a few seconds")
        if reply.status_code != 200:
            said = " ".join(reply.text.split())[:300]
            kind = InvalidRequest if reply.status_code in (400, 404, 413, 422) else EngineUnavailable
            raise kind(f"{self._name}: its endpoint refuses ({reply.status_code}): {said}")
        try:
            listed = reply.json()["choices"][0]["logprobs"]["top_logprobs"][0]
            return {int(token.removeprefix(_PREFIX)): float(value) for token, value in listed.items()}
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise EngineUnavailable(
                f"{self._name}: its endpoint tells no log probabilities by token ids, as vLLM and adapterhub do where "
                "return_tokens_as_token_ids is asked for"
            ) from error


def spread(told: Mapping[int, float], vocabulary: int, name: str) -> Tensor:
    """Log probabilities of all tokens, float32 (vocabulary,), from those of some.

    Raises EngineUnavailable for none, and for tokens beyond the vocabulary.
    """
    if not told or not 0 <= min(told) <= max(told) < vocabulary:
        raise EngineUnavailable(f"{name}: its endpoint told of other tokens than the {vocabulary} that are known here")
    rest = vocabulary - len(told)
    left = max(1 - math.fsum(math.exp(value) for value in told.values()), 1e-12)
    floor = min(min(told.values()), math.log(left / rest)) if rest else 0.0
    found = torch.full((vocabulary,), floor)
    found[list(told)] = torch.tensor(list(told.values()))
    return found


MOST_KNOWN = 64
_known: OrderedDict[tuple[str, Endpoint], Loaded] = OrderedDict()
"""Reading a tokenizer takes longer than many a request."""
_lock = threading.Lock()


def _described(spec: VariantSpec, endpoint: Endpoint) -> Loaded:
    """Raises InvalidRequest."""
    key = spec.base_digest, endpoint
    with _lock:
        if key not in _known:
            _known[key] = loading.described(spec.base, lambda config: RemoteModel(spec.label, endpoint, config))
        _known.move_to_end(key)
        while len(_known) > MOST_KNOWN:
            _known.popitem(last=False)
        return _known[key]


class RemoteLease:
    """A member elsewhere, as a Lease is of one here: nothing of it is in memory, and nothing to switch."""

    variant = None
    size_bytes = 0

    def __init__(self, spec: VariantSpec) -> None:
        """Raises InvalidRequest for a repository whose files do not say what model it is."""
        assert spec.endpoint is not None
        self.base = Stage(spec.vid)
        self.loaded = _described(spec, spec.endpoint)
        self.room = Room()
        told = "\0".join([spec.vid, spec.endpoint.url, spec.endpoint.model, str(spec.endpoint.logprobs)])
        self.execution_id = "ah-" + hashlib.sha256(told.encode()).hexdigest()[:16]

    def make_room(self, prompt: object, request: object) -> None:
        """Its memory is the endpoint's."""

    def release(self) -> None:
        """Nothing is held."""
