"""`adapterhub chat`: a conversation with a model, a patched model or an expression."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from adapterhub.cli.client import Client
from adapterhub.cli.errors import CliError, Misused
from adapterhub.cli.options import connect, examples
from adapterhub.cli.output import say, write
from adapterhub.cli.side_by_side import side_by_side


def join(app: typer.Typer) -> None:
    app.command(
        epilog=examples(
            'chat demo/both --message "Once upon a time"',
            'chat "demo/base + 0.7*demo/code" --max-tokens 100',
            "chat demo/base:demo/code < question.txt",
            'chat demo/base demo/both "demo/base + 0.3*demo/code" --message "Once upon a time"',
        )
    )(chat)


def chat(
    ctx: typer.Context,
    models: Annotated[
        list[str], typer.Argument(help="A repository, base:patch, or an expression; several answer side by side.")
    ],
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", help="Ask this and end; default: a conversation, or standard input."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A first message that sets the manner.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer; default: the server's.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="0 always takes the likeliest; default: 1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For the same answer again.")] = None,
) -> None:
    """Talk to a model, or to several at once; the answer appears as it is made."""
    client = connect(ctx)
    wishes = {"max_completion_tokens": max_tokens, "temperature": temperature, "seed": seed}
    asked = {"stream": True} | {name: value for name, value in wishes.items() if value is not None}
    first = [{"role": "system", "content": system}] if system else []
    talks = [Talk(client, asked | {"model": model}, list(first)) for model in models]
    for question in _questions(message):
        if len(talks) == 1:
            for piece in talks[0].ask(question):
                write(piece)
            say("", to_stdout=True)
        else:
            side_by_side([(talk.model, talk.ask(question)) for talk in talks])


@dataclass
class Talk:
    """A conversation with one model. asked: what every request holds; messages: what was said so far."""

    client: Client
    asked: dict[str, Any]
    messages: list[dict[str, str]]

    @property
    def model(self) -> str:
        return str(self.asked["model"])

    def ask(self, question: str) -> Iterator[str]:
        """The pieces of the answer, as they arrive. Raises CliError when the server breaks off with an error."""
        self.messages.append({"role": "user", "content": question})
        answer = ""
        for piece in _answer(self.client, self.asked | {"messages": self.messages}):
            answer += piece
            yield piece
        self.messages.append({"role": "assistant", "content": answer})


def _questions(message: str | None) -> Iterator[str]:
    """The one message, or all of standard input, or on a terminal what is typed until Ctrl-D."""
    if message is not None:
        yield message
        return
    if not sys.stdin.isatty():
        text = sys.stdin.read().strip()
        if not text:
            raise Misused("nothing to say: give --message TEXT, or a text on standard input")
        yield text
        return
    say("Ctrl-D ends the conversation")
    while True:
        try:
            text = str(typer.prompt(">", prompt_suffix=" ", err=True))
        except typer.Abort:
            return
        yield text


def _answer(client: Client, asked: dict[str, Any]) -> Iterator[str]:
    """The pieces of the answer, as they arrive. Raises CliError when the server breaks off with an error."""
    for event in client.events("POST", "/v1/chat/completions", asked):
        if event.data == "[DONE]":
            return
        chunk = json.loads(event.data)
        if "error" in chunk:
            raise CliError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            yield choice["delta"].get("content") or ""
