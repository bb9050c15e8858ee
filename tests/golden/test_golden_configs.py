"""Every config, with every argument that matters, and what `mmjax convert` writes, key by key."""

import itertools

import pytest
from entries import convert, get_config, read_raw
from golden_files import lines_of
from prompt_folders import published

CHOICES = {
    "flamingo": dict(size=("3b", "9b", "80b")),
    "llava": dict(size=("7b", "13b"), lora=("false", "true")),
    "quickstart": dict(variant=("projector", "flamingo")),
    "smol": dict(vision=("efficientnet", "vit"), contrast=("true", "false"), tune=("true", "false")),
}
FAMILIES = ("Qwen2-Instruct", "LLaVA-1.5", "LLaVA-1.6-Mistral", "SmolVLM", "Qwen2-VL")


def arguments(name):
    """All combinations of a config's arguments, `size=7b,lora=true`."""
    for values in itertools.product(*CHOICES[name].values()):
        yield ",".join(f"{key}={value}" for key, value in zip(CHOICES[name], values, strict=True))


def folded(configs):
    """{arguments: config} by lines, with what all of them share under `*`."""
    configs = {given: lines_of(config) for given, config in configs.items()}
    first, *others = configs.values()
    shared = {key: value for key, value in first.items() if all(key in o and o[key] == value for o in others)}
    own = {given: {k: v for k, v in lines.items() if k not in shared} for given, lines in configs.items()}
    return {"*": shared} | {given: lines for given, lines in own.items() if lines}


@pytest.mark.parametrize("name", CHOICES)
def test_config(name, golden):
    golden(f"configs/{name}", folded({given: get_config(f"{name}.py:{given}") for given in arguments(name)}))


@pytest.mark.parametrize("name", CHOICES)
def test_defaults_and_the_place_of_the_data(name):
    given = next(arguments(name))
    here, there = get_config(f"{name}.py"), get_config(f"{name}.py:{given},data=ELSE/WHERE")
    assert here == get_config(f"{name}.py:{given}")
    assert there != here and there == named(here, f"data/{name}", "ELSE/WHERE")


@pytest.mark.parametrize("family", FAMILIES)
def test_converted(family, golden, tmp_path):
    (tmp_path / "hf").mkdir()
    published(family, tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "run")
    golden(f"converted/{family}", named(read_raw(tmp_path / "run"), str(tmp_path / "run"), "WORKDIR"))


def named(value, path, word):
    """A config in which a word stands for a path."""
    if isinstance(value, dict):
        return {key: named(inner, path, word) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(named(inner, path, word) for inner in value)
    return value.replace(path, word) if isinstance(value, str) else value
