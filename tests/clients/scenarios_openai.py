"""What users of libraries for OpenAI's dialect do, run in an environment of their own: see `scenarios.py`.

Nothing of this project is imported here; HF_ENDPOINT and HF_TOKEN are in the environment. The sections of
docs/clients.md that name these libraries run as they stand, the address and the namespace apart.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.clients.scenarios_page import snippet

THERE = f"{os.environ['HF_ENDPOINT']}/v1"
TOKEN = os.environ["HF_TOKEN"]


def langchain() -> None:
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_core.tools import tool
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import BaseModel, Field, SecretStr

    exec(compile(_ours("LangChain", "python"), "docs/clients.md, LangChain", "exec"), {"__name__": "page"})

    given: dict[str, Any] = {"base_url": THERE, "api_key": SecretStr(TOKEN), "temperature": 0, "max_retries": 0}
    patched = ChatOpenAI(model="admin/chat + 0.7*admin/style", max_completion_tokens=12, **given)
    told = patched.invoke("How is it?")
    assert "".join(str(piece.content) for piece in patched.stream("How is it?")) == told.content
    plain = ChatOpenAI(model="admin/chat", max_completion_tokens=12, **given)
    assert plain.invoke("How is it?").content != told.content
    assert told.usage_metadata is not None
    assert told.usage_metadata["output_tokens"] <= 12

    class Mood(BaseModel):
        """A mood."""

        is_good: bool
        score: int = Field(ge=0, le=9)

    for method in ("json_schema", "function_calling"):
        found = ChatOpenAI(model="admin/chat", **given).with_structured_output(Mood, method=method).invoke("How is it?")
        assert isinstance(found, Mood), method

    def stop(now: bool) -> str:
        """Stop everything."""
        return f"stopped: {now}"

    stopping: Any = tool(stop)

    chat = ChatOpenAI(model="admin/chat", **given)
    question = HumanMessage("Stop.")
    call: Any = chat.bind_tools([stopping], tool_choice="any").invoke([question])
    [asked] = call.tool_calls
    answer = stopping.invoke(asked)
    assert isinstance(answer, ToolMessage)
    assert answer.content == f"stopped: {asked['args']['now']}"
    streamed: Any = None
    for piece in chat.bind_tools([stopping], tool_choice="stop").stream([question]):
        streamed = piece if streamed is None else streamed + piece
    assert [(one["name"], one["args"]) for one in streamed.tool_calls] == [("stop", asked["args"])]
    longer = ToolMessage(f"{answer.content}!", tool_call_id=answer.tool_call_id)
    read: list[Any] = [plain.invoke([question, call, said]) for said in (answer, longer)]
    assert read[1].usage_metadata["input_tokens"] == read[0].usage_metadata["input_tokens"] + 1

    vectors = OpenAIEmbeddings(
        model="admin/chat", base_url=THERE, api_key=SecretStr(TOKEN), check_embedding_ctx_length=False
    )
    one, two = vectors.embed_documents(["a patch", "a hub"])
    assert len(one) == len(two) == 32
    assert one == vectors.embed_query("a patch") != two


def litellm() -> None:
    import litellm

    exec(compile(_ours("LiteLLM", "python"), "docs/clients.md, LiteLLM", "exec"), {})

    given: dict[str, Any] = {
        "model": "openai/admin/chat + 0.7*admin/style",
        "api_base": THERE,
        "api_key": TOKEN,
        "messages": [{"role": "user", "content": "How is it?"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole: Any = litellm.completion(**given)
    pieces = list(litellm.completion(**given, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert whole.usage.completion_tokens <= 12
    now = {"properties": {"now": {"type": "boolean"}}, "required": ["now"]}
    parameters = {"type": "object", **now, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "stop", "parameters": parameters}}]
    called: Any = litellm.completion(**{**given, "max_tokens": 60}, tools=tools, tool_choice="required")
    assert called.choices[0].finish_reason == "tool_calls"
    assert called.choices[0].message.tool_calls[0].function.name == "stop"
    assert json.loads(called.choices[0].message.tool_calls[0].function.arguments)["now"] in (True, False)
    found: Any = litellm.embedding(model="openai/admin/chat", input=["a patch"], api_base=THERE, api_key=TOKEN)
    assert len(found.data[0]["embedding"]) == 32
    try:
        litellm.completion(**{**given, "model": "openai/admin/none"})
        raise AssertionError("a model that is not there answered")
    except litellm.NotFoundError as error:
        told = str(error)
    assert "admin/none" in told


def llm() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "LLM_USER_PATH": folder, "PATH": path}

        def run(script: str) -> str:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        first = run(_ours("llm", "bash"))
        assert first.strip()
        ask = "llm -m lab -o temperature 0 -o max_tokens 12 'How is it?'"
        assert run(f"{ask} --no-stream").strip() == run(ask).strip()
        logged = json.loads(run("llm logs list --json -n 1"))
        assert logged[0]["prompt"] == "How is it?"


def inference_client() -> None:
    from huggingface_hub import InferenceClient

    exec(compile(_ours("InferenceClient", "python"), "docs/clients.md, InferenceClient", "exec"), {})

    at_v1: Any = InferenceClient(base_url=THERE, token=TOKEN)
    messages = [{"role": "user", "content": "How is it?"}]
    model = "admin/chat + 0.7*admin/style"
    whole = at_v1.chat_completion(messages, model=model, max_tokens=12, temperature=0).choices[0].message.content
    pieces = at_v1.chat_completion(messages, model=model, max_tokens=12, temperature=0, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == whole
    parameters = {"type": "object", "properties": {"now": {"type": "boolean"}}, "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "stop", "parameters": parameters}}]
    called = at_v1.chat_completion(messages, model=model, tools=tools, tool_choice="required", max_tokens=60)
    assert called.choices[0].message.tool_calls[0].function.name == "stop"
    of_model: Any = InferenceClient(model=f"{os.environ['HF_ENDPOINT']}/models/admin/chat", token=TOKEN)
    assert of_model.text_generation("Once", max_new_tokens=3)
    assert of_model.feature_extraction("Once").shape[-1] == 32


def _ours(section: str, language: str) -> str:
    return (
        snippet(section, language).replace("http://127.0.0.1:8000", os.environ["HF_ENDPOINT"]).replace("lab/", "admin/")
    )


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
