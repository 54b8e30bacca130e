"""An OpenAI-compatible engine, asked for the log probabilities of next tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from adapterhub.cli.errors import CliError, of_status

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 120.0
TOP = 5
"""How many tokens are asked for: the most that vLLM and OpenAI's completions tell by default."""


@contextmanager
def engine(url: str, api_key: str | None) -> Iterator[Engine]:
    """The engine whose API begins at `url`, such as http://127.0.0.1:8000/v1."""
    import httpx

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    with httpx.Client(base_url=url.rstrip("/") + "/", headers=headers, timeout=TIMEOUT_S) as http:
        yield Engine(http)


class Engine:
    """Raises CliError, Missing or Declined with the engine's own sentence."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def parent(self, model: str) -> str | None:
        """The base that the engine names for an adapter; None where it names none."""
        listed = self._ask("GET", "models").get("data") or []
        entry = next((one for one in listed if isinstance(one, dict) and one.get("id") == model), {})
        parent = entry.get("parent")
        return parent if isinstance(parent, str) else None

    def next_tokens(self, model: str, prompts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """The likeliest next tokens of each prompt, text and log probability."""
        return [self._next_tokens(model, prompt) for prompt in prompts]

    def _next_tokens(self, model: str, prompt: str) -> list[tuple[str, float]]:
        asked = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": TOP}
        answer = self._ask("POST", "completions", asked)
        found = top_tokens(answer)
        if not found:
            raise CliError(
                f"{self._http.base_url}completions: told no top_logprobs of {model!r}; does it have logprobs?"
            )
        return found

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        import httpx

        where = f"{self._http.base_url}{path}"
        try:
            response = self._http.request(method, path, json=body)
            answer = response.json() if response.content else {}
        except httpx.HTTPError as error:
            raise CliError(
                f"{where}: no answer: {error}; is the engine running, and does the URL end with /v1?"
            ) from error
        except ValueError as error:
            raise CliError(f"{where}: answered no JSON; the URL of an OpenAI-compatible API ends with /v1") from error
        if response.is_error:
            said = answer.get("error", answer.get("message", answer)) if isinstance(answer, dict) else answer
            message = said.get("message", said) if isinstance(said, dict) else said
            raise of_status(response.status_code, f"{where}: {response.status_code}: {str(message)[:500]}")
        return answer


def top_tokens(answer: Any) -> list[tuple[str, float]]:
    """The likeliest first tokens of a completion, text and log probability; empty where it tells none.

    Source: OpenAI's completions, whose `top_logprobs` are an object a token; llama.cpp's server has the `content` of
    chats there.
    """
    try:
        told = answer["choices"][0]["logprobs"]
        if "content" in told:
            return [(str(one["token"]), float(one["logprob"])) for one in told["content"][0]["top_logprobs"]]
        return [(str(text), float(logprob)) for text, logprob in told["top_logprobs"][0].items()]
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return []
