"""docs/configuration.md names every setting there is, with the default that it has."""

import inspect
import re
from ast import literal_eval
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from shared_context import CacheConfig, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.config import GIB, MIB
from shared_context.serve import ServeConfig

PAGE = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")
UNITS = {"MiB": MIB, "GiB": GIB}


def documented(heading: str) -> dict[str, object]:
    """The settings under a heading, with their defaults."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", section, re.MULTILINE)
    return {name: value_of(default) for name, default in rows}


def value_of(text: str) -> object:
    number, _, unit = text.partition(" ")
    if unit in UNITS:
        return int(number) * UNITS[unit]
    return {"TreeConfig()": TreeConfig(), "CacheConfig()": CacheConfig()}.get(text) or literal_eval(text)


@pytest.mark.parametrize("settings", [StoreConfig, TreeConfig, CacheConfig, ServeConfig])
def test_every_setting_stands_in_the_reference_with_its_default(settings):
    defaults = {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(settings)}
    assert documented(settings.__name__) == defaults


def test_so_do_those_on_ray_serve():
    pytest.importorskip("ray.serve")
    from shared_context.serve.ray import Fronts

    shared = {"stores", *(f.name for f in fields(ServeConfig))}
    own = {name: field.default for name, field in Fronts.model_fields.items() if name not in shared}
    assert documented("Fronts") == own


def test_so_do_the_settings_by_which_a_model_is_loaded():
    parameters = inspect.signature(SharedLLMModel.from_pretrained).parameters
    found = documented("Loading a model")
    assert found == {name: parameters[name].default for name in ("adapter", "dtype", "device", "step_weights")}
