"""A checkpoint is converted, trained with adapters, and served again, merged and as a PEFT folder."""

import numpy as np
import peft
import tiled
import torch
import transformers
from parity import TOLERANCE, error, logits, randomise
from test_tiled_families import CONVERSATIONS, converted, llava_next

from mmjax.convert import convert, export_adapter
from mmjax.data.pipeline import make_dataset
from mmjax.inference.load import load
from mmjax.training.stages import train
from mmjax.workdir import keep_tokenizer, read_raw

LORA = [[r"backbone/layers/attention/(query|value)/kernel", dict(rank=4, alpha=8)]]


@torch.no_grad()
def test_trained_adapters_serve_merged_and_apart(tmp_path):
    theirs, processor = llava_next()
    theirs = randomise(theirs)
    config, _, model, _ = converted(theirs, processor, tmp_path)
    raw = read_raw(tmp_path / "run")
    path = tiled.write_records(tmp_path, CONVERSATIONS)
    raw["sft"]["data"] |= dict(
        length=400, workers=0, threads=1, sources=dict(main=dict(path=path, root="", weight=1.0))
    )
    raw["sft"] |= dict(batch=1, steps=3, lora=LORA, trainable=["lora_[ab]$"], save_every=3)
    raw["sft"]["optimizer"] |= dict(lr=0.1, warmup=0)
    raw |= dict(mesh=dict(data=1), load=[["", f"mmjax:{tmp_path / 'run'}"]])
    train(raw, tmp_path / "trained")

    convert(tmp_path / "trained", tmp_path / "merged")
    export_adapter(tmp_path / "trained", tmp_path / "adapter", base=str(tmp_path / "hf"))
    back = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged").eval()
    adapted = peft.PeftModel.from_pretrained(
        transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf"), tmp_path / "adapter"
    ).eval()

    data = make_dataset(
        raw["sft"]["data"],
        keep_tokenizer(config.tokenizer, tmp_path / "trained"),
        span=model.tokens_per_medium()["image"],
        splice=True,
        rows=None,
        seed=0,
        data_dir="",
        quarantine=tmp_path / "quarantine.jsonl",
    )
    batch = next(data.batches(1))
    found = logits(model, load(tmp_path / "trained").params, batch)
    question, answer, shown = CONVERSATIONS[next(index for _, index in data.plan.row(0))]
    given = tiled.inputs(processor, f"<s>{question}{answer}</s>", shown)
    here = batch.segments[0] == 1
    np.testing.assert_array_equal(batch.tokens[0, here], given["input_ids"][0])
    before = theirs(**given).logits[0]
    assert not torch.allclose(before, back(**given).logits[0], rtol=0.01), "nothing was trained"
    for served in (back, adapted):
        assert error(found[0, here], served(**given).logits[0]) < TOLERANCE
