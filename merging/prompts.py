"""Virtual tokens as peft saves them: a prompt of embeddings, a prefix of keys and values, a prompt for each task.

Files: `adapter_config.json` with num_virtual_tokens and `adapter_model.safetensors` with `prompt_embeddings`, whose
encoder, if there was one, is computed away when it is saved. Never imports torch.
Source: peft 0.21 `peft_model.py` (get_prompt), `tuners/{prompt_tuning,p_tuning,prefix_tuning,cartridge,cpt,
multitask_prompt_tuning}`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.merging.errors import InvalidPatch
from adapterhub.merging.peft_adapter import CONFIG, DTYPES, Adapter, Tuner

MAX_VIRTUAL_TOKENS = 1_000_000
"""Most virtual tokens that one prompt may have."""

EMBEDDINGS = "prompt_embeddings"
TASK_COLUMNS = "prefix_task_cols"
TASK_ROWS = "prefix_task_rows"


def count(config: Mapping[str, Any], key: str, file: str = CONFIG) -> int:
    """A whole number above 0 of the configuration. Raises InvalidPatch."""
    value = config.get(key)
    if type(value) is not int or not 0 < value <= MAX_VIRTUAL_TOKENS:
        raise InvalidPatch(f"{file}: {key} is {value!r}; a whole number from 1 to {MAX_VIRTUAL_TOKENS} is expected")
    return value


def submodules(config: Mapping[str, Any]) -> int:
    """Into how many parts of the model the tokens go: 2 for an encoder and a decoder, else 1."""
    default = 2 if config.get("task_type") == "SEQ_2_SEQ_LM" else 1
    return int(config.get("num_transformer_submodules") or default)


def check_tokens(config: Mapping[str, Any], file: str) -> None:
    """Raises InvalidPatch for numbers that no prompt has."""
    count(config, "num_virtual_tokens", file)
    if config.get("num_transformer_submodules") not in (None, 1, 2):
        found = config["num_transformer_submodules"]
        raise InvalidPatch(f"{file}: num_transformer_submodules is {found!r}; 1, 2 or nothing is expected")
    if config.get("token_dim") is not None:
        count(config, "token_dim", file)


def _stored(adapter: Adapter, names: Mapping[str, int]) -> Iterator[str]:
    """Sentences on tensors that are missing, or not of that number of dimensions, or of no float dtype."""
    for name, dimensions in names.items():
        handle = adapter.banks.get(name)
        if handle is None:
            yield f"holds no {name}"
        elif len(handle.shape) != dimensions or 0 in handle.shape:
            yield f"{name} is {handle.shape}; {dimensions} dimensions are expected, none of them empty"
        elif handle.dtype not in DTYPES:
            yield f"{name} has dtype {handle.dtype}; a float of 16 bits or more is expected"
    yield from (f"tensor of {path[:200]} belongs to no prompt" for path in adapter.modules)


def _rows(adapter: Adapter, rows: int) -> Iterator[str]:
    found, tokens = adapter.banks[EMBEDDINGS].shape[0], adapter.config["num_virtual_tokens"]
    if found != rows:
        yield f"{EMBEDDINGS} has {found} rows, and {CONFIG} says {tokens} virtual tokens, which makes {rows}"


def prompt_disagreements(adapter: Adapter) -> Iterator[str]:
    """Sentences on a prompt of embeddings (n · submodules, d) that does not fit its configuration."""
    wrong = list(_stored(adapter, {EMBEDDINGS: 2}))
    yield from wrong or _rows(adapter, adapter.config["num_virtual_tokens"] * submodules(adapter.config))
    width = adapter.config.get("token_dim")
    if not wrong and width is not None and adapter.banks[EMBEDDINGS].shape[1] != width:
        yield f"{EMBEDDINGS} is {adapter.banks[EMBEDDINGS].shape[1]} wide, and {CONFIG} says token_dim {width}"


def prefix_disagreements(adapter: Adapter) -> Iterator[str]:
    """Sentences on a prefix (n, layers · 2 · token_dim) that does not fit its configuration."""
    wrong = list(_stored(adapter, {EMBEDDINGS: 2}))
    yield from wrong or _rows(adapter, adapter.config["num_virtual_tokens"])
    layers, width = adapter.config["num_layers"], adapter.config["token_dim"]
    if not wrong and adapter.banks[EMBEDDINGS].shape[1] != layers * 2 * width:
        found = adapter.banks[EMBEDDINGS].shape[1]
        wanted = f"{layers} layers of keys and values of width {width} are {layers * 2 * width}"
        yield f"{EMBEDDINGS} is {found} wide; {wanted}"


def task_disagreements(adapter: Adapter) -> Iterator[str]:
    """Sentences on a prompt for each task: columns (tasks, n, ranks) times rows (tasks, ranks, d)."""
    wrong = list(_stored(adapter, {EMBEDDINGS: 2, TASK_COLUMNS: 3, TASK_ROWS: 3}))
    yield from wrong
    if wrong:
        return
    yield from prompt_disagreements(adapter)
    tokens, width = adapter.banks[EMBEDDINGS].shape
    tasks, ranks = (adapter.config.get(key) or 1 for key in ("num_tasks", "num_ranks"))
    for name, expected in ((TASK_COLUMNS, (tasks, tokens, ranks)), (TASK_ROWS, (tasks, ranks, width))):
        if adapter.banks[name].shape != expected:
            yield f"{name} is {adapter.banks[name].shape}; num_tasks, num_ranks and the prompt make it {expected}"


def check_prefix(config: Mapping[str, Any], file: str) -> None:
    """Raises InvalidPatch for numbers that no prefix has."""
    check_tokens(config, file)
    for key in ("num_layers", "num_attention_heads", "token_dim"):
        count(config, key, file)
    if config["token_dim"] % config["num_attention_heads"]:
        found = f"{config['token_dim']} and {config['num_attention_heads']}"
        raise InvalidPatch(f"{file}: token_dim and num_attention_heads are {found}; the second must divide the first")


def _facts(adapter: Adapter) -> Mapping[str, Any]:
    needs = ["task_ids"] if TASK_ROWS in adapter.banks else []
    return {"virtual_tokens": adapter.config["num_virtual_tokens"], "needs": needs}


def prompt_tuner(peft_type: str, **options: Any) -> Tuner:
    """A tuner whose patch is a prompt of embeddings."""
    defaults = {"loose": (EMBEDDINGS,), "check": check_tokens, "disagreements": prompt_disagreements}
    return Tuner(peft_type, effect="runtime", more=_facts, **{**defaults, **options})


def prefix_tuner(peft_type: str) -> Tuner:
    """A tuner whose patch is a prefix of keys and values."""
    return prompt_tuner(
        peft_type,
        check=check_prefix,
        disagreements=prefix_disagreements,
        shown=("num_layers", "num_attention_heads", "token_dim"),
    )


def check_cpt(config: Mapping[str, Any], file: str) -> None:
    """Raises InvalidPatch for context tokens whose number is not that of the virtual ones."""
    check_tokens(config, file)
    tokens = config.get("cpt_token_ids")
    is_whole = isinstance(tokens, list) and all(type(one) is int and one >= 0 for one in tokens)
    if tokens is not None and (not is_whole or len(tokens) != config["num_virtual_tokens"]):
        found = f"{len(tokens)} entries" if isinstance(tokens, list) else type(tokens).__name__
        raise InvalidPatch(
            f"{file}: cpt_token_ids has {found}; a token for each of {config['num_virtual_tokens']} is expected"
        )


def check_tasks(config: Mapping[str, Any], file: str) -> None:
    """Raises InvalidPatch for numbers of tasks or ranks that there cannot be."""
    check_tokens(config, file)
    for key in ("num_tasks", "num_ranks"):
        if config.get(key) is not None:
            count(config, key, file)


PROMPT_TUNING = prompt_tuner("PROMPT_TUNING")
P_TUNING = prompt_tuner("P_TUNING")
CPT = prompt_tuner("CPT", check=check_cpt)
MULTITASK = prompt_tuner(
    "MULTITASK_PROMPT_TUNING",
    loose=(EMBEDDINGS, TASK_COLUMNS, TASK_ROWS),
    check=check_tasks,
    disagreements=task_disagreements,
    shown=("num_tasks", "num_ranks"),
)
PREFIX = prefix_tuner("PREFIX_TUNING")
CARTRIDGE = prefix_tuner("CARTRIDGE")
