"""Writes down which public methods of HfApi a client called, and what came of it: one JSON object a line.

`sitecustomize.py` starts it where AHTEST_METHODS names a file. A method that gives an iterator has succeeded once
that has ended or given something.
"""

import functools
import importlib.util
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import GeneratorType, ModuleType
from typing import Any

_depth = threading.local()
_told: set[str] = set()


def watch(module: ModuleType) -> None:
    """Wrap each public method of HfApi, and the module's own names for them (`list_models = api.list_models`)."""
    methods = {name: it for name, it in vars(module.HfApi).items() if not name.startswith("_") and callable(it)}
    for name, method in methods.items():
        setattr(module.HfApi, name, _watched(name, method))
        if getattr(vars(module).get(name), "__self__", None) is module.api:
            setattr(module, name, getattr(module.api, name))
    _write({"client": sys.modules["huggingface_hub"].__version__, "methods": sorted(methods)})


def _watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        within = getattr(_depth, "calls", 0)
        _depth.calls = within + 1
        try:
            result = method(*arguments, **named)
        except BaseException as error:
            _tell(name, within, error)
            raise
        finally:
            _depth.calls = within
        if isinstance(result, GeneratorType):
            return _iterated(name, within, result)
        _tell(name, within)
        return result

    return call


def _iterated(name: str, within: int, result: Iterator[Any]) -> Iterator[Any]:
    try:
        for one in result:
            _tell(name, within)
            yield one
    except BaseException as error:
        if not isinstance(error, GeneratorExit):
            _tell(name, within, error)
        raise
    _tell(name, within)


def _tell(name: str, within: int, error: BaseException | None = None) -> None:
    """Append one line, each different one once; `within` calls of other methods."""
    said = "" if error is None else getattr(error, "server_message", None) or str(error).strip().rpartition("\n")[2]
    line = {
        "client": sys.modules["huggingface_hub"].__version__,
        "method": name,
        "test": os.environ.get("PYTEST_CURRENT_TEST", "").partition(" (")[0],
        "direct": within == 0,
        "error": None if error is None else f"{type(error).__name__}: {said}",
    }
    _write(line)


def _write(line: dict[str, Any]) -> None:
    text = json.dumps(line) + "\n"
    if text not in _told:
        _told.add(text)
        with open(os.environ["AHTEST_METHODS"], "a") as file:  # noqa: PTH123
            file.write(text)


class Finder(MetaPathFinder):
    """Has `watch` called once huggingface_hub.hf_api is imported."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "huggingface_hub.hf_api":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        loader: Any = spec.loader
        execute = loader.exec_module

        def and_watch(module: ModuleType) -> None:
            execute(module)
            watch(module)

        loader.exec_module = and_watch
        return spec
