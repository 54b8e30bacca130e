"""How a merged model chats: the template most inputs have, one of those that are built in, or one that is given.

A given template is parsed and its names are looked up; it is never rendered here. The built-in ones have
the names that mergekit knows and write the formats of those models; tests compare them with mergekit's. Never imports
torch.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from adapterhub.merging.errors import InvalidParameter, InvalidPatch
from adapterhub.merging.folders import Folder, join, read_json
from adapterhub.merging.tokenizers import CONFIG, MAX_FILE_BYTES, json_bytes

TEMPLATE = "chat_template.jinja"
AUTO = "auto"
MAX_CHARACTERS = 1 << 18
"""Longest template that is taken."""

BUILT_IN: Mapping[str, str] = {
    "alpaca": (
        "{%- for message in messages %}\n"
        "    {%- if message['role'] == 'user' %}{{ '### Instruction:\\n' }}{% endif %}\n"
        "    {%- if message['role'] == 'assistant' %}{{ '### Response:\\n' }}{% endif %}\n"
        "    {{- message['content'] | trim + '\\n\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
    ),
    "chatml": (
        "{%- for message in messages %}\n"
        "    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "exaone": (
        "{%- if messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}\n"
        "{%- for message in messages %}\n"
        "    {{- '[|' + message['role'] + '|]' + message['content'] }}\n"
        "    {{- '\\n' if message['role'] == 'user' else '[|endofturn|]\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
    ),
    "llama3": (
        "{{- bos_token }}\n"
        "{%- for message in messages %}\n"
        "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
        "    {{- message['content'] | trim + '<|eot_id|>' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "mistral": (
        "{%- set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' %}\n"
        "{%- set turns = messages[1:] if system else messages %}\n"
        "{{- bos_token }}\n"
        "{%- for message in turns %}\n"
        "    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] == 'system' %}\n"
        "        {{- raise_exception('after an optional system message, user and assistant take turns') }}\n"
        "    {%- endif %}\n"
        "    {%- if message['role'] == 'user' %}\n"
        "        {{- ' [INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}\n"
        "    {%- else %}{{ ' ' + message['content'] + eos_token }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}"
    ),
}
"""Templates by name."""


def template_for(asked: str, models: Iterable[tuple[Folder, str]]) -> str | None:
    """The template that a setting means; None for "auto" where no model has one.

    models: folder and prefix of each, in the recipe's order, which decides between templates that are as common.
    Raises InvalidParameter for a text that is neither a name nor a template.
    """
    if asked == AUTO:
        found = [one.strip() for one in (template_of(*model) for model in models) if one is not None and one.strip()]
        return Counter(found).most_common(1)[0][0] if found else None
    if asked in BUILT_IN:
        return BUILT_IN[asked]
    check_template(asked)
    return asked


def template_of(folder: Folder, prefix: str) -> str | None:
    """The template of a model: its own file, else the (default) one in its tokenizer's configuration, else None."""
    file = join(prefix, TEMPLATE)
    if file in folder.names():
        if folder.size(file) > 4 * MAX_CHARACTERS:
            raise InvalidPatch(f"{file}: {folder.size(file)} bytes; at most {4 * MAX_CHARACTERS} are read")
        return folder.read(file).decode("utf-8", errors="replace")
    file = join(prefix, CONFIG)
    if file not in folder.names():
        return None
    found = read_json(folder, file, limit_bytes=MAX_FILE_BYTES).get("chat_template")
    if isinstance(found, list):
        named = [one for one in found if isinstance(one, dict) and one.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found if isinstance(found, str) else None


def check_template(text: str) -> None:
    """Raises InvalidParameter unless the text is a Jinja template with filters and tests that are there.

    It is parsed and not compiled: compiling works out constants, which a template may make as large as it likes.
    """
    from jinja2 import TemplateSyntaxError, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """transformers' own block, which marks what the assistant says."""

        tags = {"generation"}  # jinja2's own way

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    names = f"expected {AUTO}, {', '.join(BUILT_IN)}, or a Jinja template"
    if "{" not in text:
        raise InvalidParameter(f"chat_template is {text[:100]!r}; {names}")
    if len(text) > MAX_CHARACTERS:
        raise InvalidParameter(f"chat_template has {len(text)} characters; at most {MAX_CHARACTERS} are taken")
    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols", Generation])
    try:
        parsed = environment.parse(text)
        used = [*parsed.find_all(nodes.Filter), *parsed.find_all(nodes.Test)]
    except TemplateSyntaxError as error:
        raise InvalidParameter(f"chat_template: line {error.lineno}: {error.message}") from error
    except RecursionError:
        raise InvalidParameter("chat_template: nested too deeply") from None
    for one in used:
        known: Mapping[str, Any] = environment.filters if isinstance(one, nodes.Filter) else environment.tests
        if one.name not in known:
            raise InvalidParameter(f"chat_template: line {one.lineno}: Jinja has no {one.name!r}")


def template_files(text: str, config: Mapping[str, Any] | None) -> dict[str, bytes]:
    """A template as transformers 5 writes it: in a file of its own, and not in the tokenizer's configuration.

    config: that configuration, None where there is none; it is among the files where it is changed.
    """
    files = {TEMPLATE: text.encode()}
    if config is not None and "chat_template" in config:
        files[CONFIG] = json_bytes({key: value for key, value in config.items() if key != "chat_template"})
    return files
