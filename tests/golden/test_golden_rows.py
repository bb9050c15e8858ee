"""What models are fed: the first rows of training, and prompts, as sums over every field of their batches."""

import json

import pytest
from entries import convert, hashes, prompts, read_raw, rows
from made import prompt_batches
from prompt_folders import published
from small_runs import VARIANTS, quickstart

# Families whose pictures come in tiles, or at their own size, and how many media a row has room for.
FAMILIES = {"LLaVA-1.6-Mistral": 12, "SmolVLM": 12, "InternVL": 12, "Qwen2-VL": 4}
PATCHES = 64


@pytest.fixture(scope="module", params=FAMILIES)
def converted(request, data, tmp_path_factory):
    """(family, a converted workdir whose rows are short and of the made data)."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "hf").mkdir()
    published(request.param, folder / "hf")
    convert(folder / "hf", folder / "run")
    file = folder / "run" / "config.json"
    raw = json.loads(file.read_text())
    section = raw["sft"]["data"]
    source = dict(path=str(data / "conversations.jsonl"), root=str(data), weight=1.0)
    section |= dict(length=384, workers=0, threads=1, sources=dict(main=source))
    section["media"]["slots"] = FAMILIES[request.param]
    if request.param == "Qwen2-VL":
        raw["model"]["encoders"]["image"]["patches"] = section["media"]["views"]["patches"] = PATCHES
        section["media"]["views"]["max_pixels"] = PATCHES * 14**2
    file.write_text(json.dumps(raw))
    return request.param, folder / "run"


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
@pytest.mark.parametrize("fusion", VARIANTS)
def test_rows(fusion, stage, data, golden, tmp_path):
    found, batches = rows(quickstart(data, fusion), stage, tmp_path)
    golden(f"rows/{fusion}-{stage}", hashes(batches) | dict(fingerprint=found.plan.fingerprint))


@pytest.mark.parametrize("name", ["splice", "cross-attention"])
def test_prompts(name, trained, golden):
    golden(f"prompts/{name}", hashes(prompts(trained(name), prompt_batches(system=False))))


def test_rows_of_families(converted, golden, tmp_path):
    family, workdir = converted
    found, batches = rows(read_raw(workdir), "sft", tmp_path)
    golden(f"rows/{family}", hashes(batches) | dict(fingerprint=found.plan.fingerprint))


def test_prompts_of_families(converted, golden):
    family, workdir = converted
    golden(f"prompts/{family}", hashes(prompts(workdir, prompt_batches(system=True))))
