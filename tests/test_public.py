"""What is public, with its arguments and their defaults, is what public.txt says: nobody changes it unseen.

``python tests/test_public.py`` prints it as it is; put that into public.txt where the change is meant.
"""

import importlib
import inspect
from enum import Enum
from pathlib import Path
from typing import Any

MODULES = (
    "shared_context",
    "shared_context.errors",
    "shared_context.integrations.llamaindex",
    "shared_context.integrations.langchain",
    "shared_context.integrations.langgraph",
    "shared_context.training",
)


def default(value: Any) -> str:
    if isinstance(value, Enum):
        return repr(value.value)
    return repr(value) if isinstance(value, str | int | float | tuple | None) else "..."


def arguments(call: Any) -> str:
    """A call's arguments without types, as they are written."""
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except ValueError:
        return "(...)"
    shown, keywords_only = [], False
    for parameter in parameters:
        if parameter.name in ("self", "cls", "_cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keywords_only:
            keywords_only = True
            if not shown or not shown[-1].startswith("*"):
                shown.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        value = "" if parameter.default is parameter.empty else f"={default(parameter.default)}"
        shown.append(f"{star}{parameter.name}{value}")
    return f"({', '.join(shown)})"


def lines_of(name: str, thing: Any) -> list[str]:
    """A function's line, or a class's and those of what it, or a class of this library that it is made of, defines."""
    if not inspect.isclass(thing):
        return [f"{name}{arguments(thing) if callable(thing) else ''}"]
    if issubclass(thing, BaseException):
        return [f"{name}({', '.join(base.__name__ for base in thing.__bases__)})"]
    lines = [f"{name}{arguments(thing)}"]
    own = [base for base in reversed(thing.__mro__) if base.__module__.startswith("shared_context")]
    for member, value in sorted({name: value for base in own for name, value in vars(base).items()}.items()):
        if member.startswith("_") or not (callable(value) or isinstance(value, property | classmethod | staticmethod)):
            continue
        call = getattr(value, "__func__", value)
        lines.append(f"  .{member}{'' if isinstance(value, property) else arguments(call)}")
    return lines


def surface() -> str:
    text = []
    for path in MODULES:
        module = importlib.import_module(path)
        names = getattr(module, "__all__", None)
        if names is None:
            names = [n for n, v in vars(module).items() if inspect.isclass(v) and v.__module__ == path]
        text.append(f"# {path}")
        for name in sorted(names):
            if not inspect.ismodule(getattr(module, name)):
                text += lines_of(name, getattr(module, name))
        text.append("")
    return "\n".join(text)


def test_what_is_public_is_what_is_listed():
    listed = Path(__file__).with_name("public.txt").read_text(encoding="utf-8")
    assert surface().splitlines() == listed.splitlines()


if __name__ == "__main__":
    print(surface(), end="")
