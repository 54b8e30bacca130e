"""A small server with the documented endpoints of vLLM or SGLang, that really reads what it is given and computes.

Adapters are read from disk by peft and applied at run time to a transformers model; weights are read again from disk.
Like the real ones it keeps what it computed by adapter and prompt, until it is told to forget: weights that change
without that are seen in the answers. `python -m tests.hub.serving.remote_server --help`; GET /seen lists what was
asked. Source: vLLM 0.33 `entrypoints/serve/{lora,dev}`, `entrypoints/rl/online`; SGLang 0.5 `http_server.py`.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

Json = dict[str, Any]

MAX_RANK = 8
SLOW = "slow"
"""A prompt that begins so takes its time between tokens."""


class Model:
    """The weights and adapters in memory, and the answers kept by adapter and prompt."""

    def __init__(self, path: str) -> None:
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        self.adapters: dict[str, str] = {}
        self.kept: dict[tuple[str | None, tuple[int, ...]], list[tuple[int, torch.Tensor]]] = {}
        self.running = 0
        self.label = "default"
        self.sleeping: set[str] = set()
        self.put(path)

    def put(self, path: str) -> None:
        """Read the weights anew; adapters go on them again."""
        self.path = path
        read: Any = transformers.AutoModelForCausalLM.from_pretrained(path)
        self.model: Any = read.eval()
        adapters, self.adapters = self.adapters, {}
        for name, folder in adapters.items():
            self.load(name, folder)

    def load(self, name: str, path: str) -> None:
        """Raises FileNotFoundError, ValueError."""
        config = json.loads((Path(path) / "adapter_config.json").read_text())
        if config["r"] > MAX_RANK:
            raise ValueError(f"LoRA rank {config['r']} is greater than max_lora_rank {MAX_RANK}.")
        if config.get("use_dora") or config.get("modules_to_save") or config.get("rank_pattern"):
            raise ValueError("not supported")
        if isinstance(self.model, peft.PeftModel):
            self.model.load_adapter(path, adapter_name=name)
        else:
            self.model = peft.PeftModel.from_pretrained(self.model, path, adapter_name=name)
        self.adapters[name] = path

    def unload(self, name: str) -> None:
        del self.adapters[name]
        self.kept = {key: value for key, value in self.kept.items() if key[0] != name}
        if self.adapters:
            self.model.delete_adapter(name)
        else:
            self.model = self.model.unload()

    def logits(self, tokens: list[int], adapter: str | None) -> Any:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            if adapter is None:
                if not isinstance(self.model, peft.PeftModel):
                    return self.model(ids).logits[0]
                with self.model.disable_adapter():
                    return self.model(ids).logits[0]
            self.model.set_adapter(adapter)
            return self.model(ids).logits[0]

    async def steps(self, prompt: list[int], adapter: str | None, most: int, pause_s: float) -> AsyncIterator[Any]:
        """Each token with its log probabilities; steps that were computed before are taken from what is kept."""
        key = (adapter, tuple(prompt))
        known = self.kept.setdefault(key, [])
        self.running += 1
        try:
            for number in range(most):
                if number == len(known):
                    tokens = [*prompt, *(token for token, _ in known)]
                    logprobs = self.logits(tokens, adapter)[-1].log_softmax(-1)
                    known.append((int(logprobs.argmax()), logprobs))
                yield known[number]
                if known[number][0] == self.tokenizer.eos_token_id:
                    return
                await asyncio.sleep(pause_s)
        finally:
            self.running -= 1


class Server:
    """The routes that both kinds have."""

    kind = ""

    def __init__(self, model: Model, name: str, key: str) -> None:
        self.model, self.name, self.key = model, name, key
        self.seen: list[Any] = []

    def routes(self) -> list[Route]:
        return [
            Route("/seen", self.list_seen),
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/embeddings", self.embeddings, methods=["POST"]),
        ]

    async def list_seen(self, request: Request) -> Response:
        return JSONResponse(self.seen)

    async def health(self, request: Request) -> Response:
        return Response()

    async def models(self, request: Request) -> Response:
        own = {"id": self.name, "object": "model", "root": self.model.path, "parent": None}
        cards = [{"id": name, "object": "model", "root": path, "parent": self.name} for name, path in self.loaded()]
        return JSONResponse({"object": "list", "data": [own, *cards]})

    def loaded(self) -> list[tuple[str, str]]:
        return list(self.model.adapters.items())

    def adapter_of(self, body: Json) -> str | None:
        """Raises LookupError."""
        raise NotImplementedError

    def not_there(self, name: str) -> tuple[int, Json]:
        raise NotImplementedError

    async def completions(self, request: Request) -> Response:
        body = await request.json()
        prompt = body["prompt"]
        tokens = self.model.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        return await self.answer(request, body, tokens, "text_completion")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        if not self.model.tokenizer.chat_template:
            return JSONResponse({"error": {"message": "no chat template", "type": "BadRequest", "code": 400}}, 400)
        text = self.model.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, tokenize=False)
        tokens = self.model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return await self.answer(request, body, tokens, "chat.completion.chunk")

    async def answer(self, request: Request, body: Json, tokens: list[int], kind: str) -> Response:
        self.seen.append({"path": request.url.path, **body})
        assert body["temperature"] == 0, "this server is greedy"
        assert body["stream"], "this server streams"
        try:
            adapter = self.adapter_of(body)
        except LookupError as error:
            status, answer = self.not_there(str(error.args[0]))
            return JSONResponse(answer, status)
        return StreamingResponse(self.chunks(body, tokens, adapter, kind), media_type="text/event-stream")

    async def chunks(self, body: Json, tokens: list[int], adapter: str | None, kind: str) -> AsyncIterator[str]:
        most = body.get("max_tokens")
        most = 256 - len(tokens) if most is None else most
        is_slow = self.model.tokenizer.decode(tokens).startswith(SLOW)
        decode = self.model.tokenizer.decode
        done: list[int] = []
        told = ""
        end = self.model.tokenizer.eos_token_id
        try:
            async for token, logprobs in self.model.steps(tokens, adapter, most, 0.05 if is_slow else 0.0):
                done.append(token)
                text = decode(done, skip_special_tokens=True)
                is_last = token == end or len(done) == most
                piece = "" if text.endswith("\ufffd") and not is_last else text[len(told) :]
                told += piece
                choice: Json = {"index": 0, "finish_reason": None, **self.worded(kind, piece)}
                if body.get("logprobs") is not None and body["logprobs"] is not False:
                    choice["logprobs"] = self.told_logprobs(kind, token, logprobs, body)
                if is_last:
                    choice["finish_reason"] = "stop" if token == end else "length"
                yield self.event(kind, [choice], self.usage(tokens, done))
            yield self.event(kind, [], self.usage(tokens, done))
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.seen.append({"cancelled_after": len(done)})
            raise

    def worded(self, kind: str, piece: str) -> Json:
        return {"text": piece} if kind == "text_completion" else {"delta": {"content": piece}}

    def told_logprobs(self, kind: str, token: int, logprobs: torch.Tensor, body: Json) -> Json:
        decode = self.model.tokenizer.decode
        most = body["logprobs"] if kind == "text_completion" else body.get("top_logprobs", 0)
        best = logprobs.topk(max(1, most))
        top = [(decode([int(one)]), float(value)) for value, one in zip(*best, strict=True)][:most]
        if kind == "text_completion":
            own = {"tokens": [decode([token])], "token_logprobs": [float(logprobs[token])], "text_offset": [0]}
            return {**own, "top_logprobs": [dict(top)]}
        tops = [{"token": text, "logprob": value, "bytes": []} for text, value in top]
        one = {"token": decode([token]), "logprob": float(logprobs[token]), "bytes": [], "top_logprobs": tops}
        return {"content": [one]}

    def usage(self, prompt: list[int], done: list[int]) -> Json:
        return {"prompt_tokens": len(prompt), "completion_tokens": len(done), "total_tokens": len(prompt) + len(done)}

    def event(self, kind: str, choices: list[Json], usage: Json) -> str:
        return f"data: {json.dumps({'id': 'x', 'object': kind, 'choices': choices, 'usage': usage})}\n\n"

    async def embeddings(self, request: Request) -> Response:
        """The mean of the logits: not what anybody wants, and told from others by adapter."""
        body = await request.json()
        try:
            adapter = self.adapter_of(body)
        except LookupError as error:
            status, answer = self.not_there(str(error.args[0]))
            return JSONResponse(answer, status)
        encode = self.model.tokenizer
        inputs = [encode(one)["input_ids"] if isinstance(one, str) else one for one in body["input"]]
        found = [self.model.logits(one, adapter).mean(0).tolist() for one in inputs]
        data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(found)]
        return JSONResponse({"object": "list", "data": data, "usage": {"prompt_tokens": sum(map(len, inputs))}})


class Vllm(Server):
    kind = "vllm"

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            Route("/version", self.version),
            Route("/v1/load_lora_adapter", self.load, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.unload, methods=["POST"]),
            Route("/sleep", self.sleep, methods=["POST"]),
            Route("/wake_up", self.wake_up, methods=["POST"]),
            Route("/is_sleeping", self.is_sleeping),
            Route("/collective_rpc", self.collective_rpc, methods=["POST"]),
            Route("/reset_prefix_cache", self.reset_prefix_cache, methods=["POST"]),
            Route("/weight_info", self.weight_info),
            Route("/update_weight_version", self.update_weight_version, methods=["POST"]),
        ]

    def adapter_of(self, body: Json) -> str | None:
        if body["model"] == self.name:
            return None
        if body["model"] not in self.model.adapters:
            raise LookupError(body["model"])
        return str(body["model"])

    def not_there(self, name: str) -> tuple[int, Json]:
        message = f"The model `{name}` does not exist."
        return 404, {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}}

    def error(self, status: int, message: str) -> Response:
        return JSONResponse({"error": {"message": message, "type": "Error", "param": None, "code": status}}, status)

    async def version(self, request: Request) -> Response:
        return JSONResponse({"version": "0.33.0"})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append({"path": request.url.path, **body})
        name = body["lora_name"]
        if name in self.model.adapters:
            return self.error(400, f"The lora adapter '{name}' has already been loaded.")
        try:
            self.model.load(name, body["lora_path"])
        except FileNotFoundError:
            return self.error(404, f"Loading lora {name} failed: No adapter found for {body['lora_path']}")
        except ValueError as error:
            return self.error(500, str(error))
        return Response(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append({"path": request.url.path, **body})
        if body["lora_name"] not in self.model.adapters:
            return self.error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
        self.model.unload(body["lora_name"])
        return Response("Success")

    async def sleep(self, request: Request) -> Response:
        level = int(request.query_params.get("level", 1))
        assert level == 2
        assert not self.model.running, "requests ran while the engine was put to sleep"
        self.model.sleeping = {"weights", "kv_cache"}
        with torch.no_grad():
            for parameter in self.model.model.parameters():
                parameter.zero_()  # as level 2 does: what was there is gone
        return JSONResponse({"status": "sleeping", "level": level})

    async def wake_up(self, request: Request) -> Response:
        self.model.sleeping -= set(request.query_params.getlist("tags")) or {"weights", "kv_cache"}
        return JSONResponse({"status": "sleeping" if self.model.sleeping else "awake"})

    async def is_sleeping(self, request: Request) -> Response:
        return JSONResponse({"is_sleeping": bool(self.model.sleeping)})

    async def collective_rpc(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append({"path": request.url.path, **body})
        assert body["method"] == "reload_weights"
        assert "weights" not in self.model.sleeping, "there is no memory to read the weights into"
        self.model.put(body["kwargs"]["weights_path"])
        return JSONResponse({"results": [None]})

    async def reset_prefix_cache(self, request: Request) -> Response:
        assert not self.model.sleeping
        self.model.kept.clear()
        return JSONResponse({"success": not self.model.running})

    async def weight_info(self, request: Request) -> Response:
        return JSONResponse({"weight_version": self.model.label})

    async def update_weight_version(self, request: Request) -> Response:
        self.model.label = (await request.json())["new_version"]
        return JSONResponse({"success": True, "new_version": self.model.label})


class Sglang(Server):
    kind = "sglang"

    def routes(self) -> list[Route]:
        return [
            *super().routes(),
            Route("/model_info", self.model_info),
            Route("/server_info", self.server_info),
            Route("/load_lora_adapter", self.load, methods=["POST"]),
            Route("/unload_lora_adapter", self.unload, methods=["POST"]),
            Route("/update_weights_from_disk", self.update, methods=["POST"]),
            Route("/flush_cache", self.flush, methods=["POST"]),
        ]

    def adapter_of(self, body: Json) -> str | None:
        """`model` is not looked at, as by the real one."""
        name = body.get("lora_path")
        if name is not None and name not in self.model.adapters:
            raise LookupError(name)
        return name

    def not_there(self, name: str) -> tuple[int, Json]:
        loaded = list(self.model.adapters)
        message = f"The following requested LoRA adapters are not loaded: {name}\nLoaded adapters: {loaded}."
        return 400, {"object": "error", "message": message, "type": "BadRequest", "param": None, "code": 400}

    def loaded(self) -> list[tuple[str, str]]:
        return []  # older servers list none

    async def model_info(self, request: Request) -> Response:
        return JSONResponse({"model_path": self.model.path, "is_generation": True, "weight_version": self.model.label})

    async def server_info(self, request: Request) -> Response:
        return JSONResponse({"model_path": self.model.path, "served_model_name": self.name, "version": "0.5.6"})

    async def load(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append({"path": request.url.path, **body})
        name = body["lora_name"]
        try:
            if name in self.model.adapters:
                raise ValueError(f"LoRA with name {name} already exists. Loaded LoRAs: {list(self.model.adapters)}")
            self.model.load(name, body["lora_path"])
        except (FileNotFoundError, ValueError) as error:
            return JSONResponse({"success": False, "error_message": str(error), "loaded_adapters": {}}, 400)
        return JSONResponse({"success": True, "error_message": "", "loaded_adapters": self.model.adapters})

    async def unload(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append({"path": request.url.path, **body})
        self.model.unload(body["lora_name"])
        return JSONResponse({"success": True, "error_message": "", "loaded_adapters": self.model.adapters})

    async def update(self, request: Request) -> Response:
        body = await request.json()
        self.seen.append({"path": request.url.path, **body})
        assert not self.model.running, "requests ran while the weights were changed"
        try:
            self.model.put(body["model_path"])
        except OSError as error:
            return JSONResponse({"success": False, "message": str(error), "num_paused_requests": 0}, 400)
        if body.get("flush_cache", True):
            self.model.kept.clear()
        self.model.label = body.get("weight_version", self.model.label)
        message = "Succeeded to update model weights."
        return JSONResponse({"success": True, "message": message, "num_paused_requests": 0})

    async def flush(self, request: Request) -> Response:
        self.model.kept.clear()
        return Response("Cache flushed.\n")


class Guard:
    """401 without the key, where there is one."""

    def __init__(self, app: Any, key: str) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        said = dict(scope.get("headers", ())).get(b"authorization", b"").decode()
        if scope["type"] == "http" and self.key and said != f"Bearer {self.key}":
            await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dialect", choices=["vllm", "sglang"])
    parser.add_argument("model", help="folder of the model")
    parser.add_argument("--name", required=True, help="what the model is served as")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--api-key", default="")
    given = parser.parse_args()
    torch.set_num_threads(1)
    server = (Vllm if given.dialect == "vllm" else Sglang)(Model(given.model), given.name, given.api_key)
    app = Starlette(routes=server.routes(), middleware=[Middleware(Guard, key=given.api_key)])
    uvicorn.run(app, host="127.0.0.1", port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
