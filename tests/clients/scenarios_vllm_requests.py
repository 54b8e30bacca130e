"""vLLM's own types of requests and replies, in an environment of its own; nothing of this project is imported here.

Reads a list of {"route", "body", "max_tokens"} on stdin and tells what vLLM makes of each, and what it would send.
"""

import json
import sys
from typing import Any


def understood(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How vLLM would sample for each request, and the fields that it does not know."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    kinds = {
        "/v1/completions": CompletionRequest,
        "/v1/chat/completions": ChatCompletionRequest,
        "/v1/load_lora_adapter": LoadLoRAAdapterRequest,
    }
    defaults = {"temperature": 0.11, "top_p": 0.22, "top_k": 33, "repetition_penalty": 1.44}  # generation_config.json's
    found = []
    for one in requests:
        read = kinds[one["route"]](**one["body"])
        told: dict[str, Any] = {"unknown": sorted(read.model_extra or {})}
        if hasattr(read, "to_sampling_params"):
            made = read.to_sampling_params(one["max_tokens"], dict(defaults))
            names = ("n", "temperature", "top_p", "top_k", "repetition_penalty", "presence_penalty")
            told |= {name: getattr(made, name) for name in (*names, "frequency_penalty", "seed", "stop", "logprobs")}
            told["logit_bias"] = {str(token): bias for token, bias in (made.logit_bias or {}).items()}
            told["has_schema"] = made.structured_outputs is not None and made.structured_outputs.json is not None
            told["stream_options"] = read.stream_options.model_dump()
        found.append(told)
    return found


def sent() -> dict[str, list[dict[str, Any]]]:
    """Chunks of a completion and of a chat as vLLM words them, with usage in each and at the end."""
    from vllm.entrypoints.openai.chat_completion import protocol as chat
    from vllm.entrypoints.openai.completion import protocol as completion
    from vllm.entrypoints.serve.engine.protocol import UsageInfo

    def usage(count: int) -> Any:
        return UsageInfo(prompt_tokens=5, completion_tokens=count, total_tokens=5 + count)

    def completed(text: str, count: int, **more: Any) -> Any:
        logprobs = completion.CompletionLogProbs(
            tokens=[text], token_logprobs=[-0.5], top_logprobs=[{text: -0.5, "z": -1.5}], text_offset=[0]
        )
        choice = completion.CompletionResponseStreamChoice(index=0, text=text, logprobs=logprobs, **more)
        return completion.CompletionStreamResponse(model="m", choices=[choice], usage=usage(count))

    def chatted(text: str, count: int, **more: Any) -> Any:
        one = {"token": text, "logprob": -0.5, "bytes": list(text.encode())}
        content = [chat.ChatCompletionLogProbsContent(**one, top_logprobs=[chat.ChatCompletionLogProb(**one)])]
        choice = chat.ChatCompletionResponseStreamChoice(
            index=0,
            delta=chat.DeltaMessage(content=text),
            logprobs=chat.ChatCompletionLogProbs(content=content),
            **more,
        )
        return chat.ChatCompletionStreamResponse(model="m", choices=[choice], usage=usage(count))

    first = chat.ChatCompletionResponseStreamChoice(index=0, delta=chat.DeltaMessage(role="assistant", content=""))
    found = {
        "/v1/completions": [
            completed("a", 1),
            completed("b", 2, finish_reason="stop", stop_reason="END"),
            completion.CompletionStreamResponse(model="m", choices=[], usage=usage(2)),
        ],
        "/v1/chat/completions": [
            chat.ChatCompletionStreamResponse(model="m", choices=[first], usage=usage(0)),
            chatted("a", 1),
            chatted("b", 2, finish_reason="length"),
            chat.ChatCompletionStreamResponse(model="m", choices=[], usage=usage(2)),
        ],
    }
    return {route: [one.model_dump(mode="json") for one in chunks] for route, chunks in found.items()}


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    answer = {"understood": understood(asked), "sent": sent()}
    sys.stdout.write("ANSWER" + json.dumps(answer) + "\n")
