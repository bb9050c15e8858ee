"""Every mistake in a config is found before the first step and before a folder is made, and named by its key."""

import copy

import pytest
from tiny_run import config, metrics, write_data

from mmjax.errors import UserError
from mmjax.training.run import prepare
from mmjax.training.stages import train

IMAGE = "model.encoders.image"
CONTRAST = dict(type="objectives.contrastive.image_text", temperature=0.1, weight=1.0)
LM = dict(type="objectives.language.next_token", weight=1.0)
PERCEIVER = dict(
    type="projectors.resampler.Perceiver", latents=4, depth=1, heads=2, head_dim=8, mlp_ratio=2,
    norm="layer", norm_eps=1e-5, activation="gelu", project=True,
)  # fmt: skip
EFFICIENT = dict(type="encoders.efficientnet.EfficientNet", variant="lite0", layer=-1, pool="none", size=16)
SMALLEST = dict(
    type="encoders.vit.ViT", variant="vit", stem="patch", position="sincos2d", layer=-1,
    size=16, patch=8, width=4, depth=1, heads=1, kv_heads=1, head_dim=4, mlp_width=8,
)  # fmt: skip
PERPLEXITY = dict(type="evaluation.benchmarks.perplexity.evaluate", windows=4, length=32)

# (key, value, what the message says); None as a key's value takes the key away.
OF_A_STAGE = [
    ("sft.data.lenght", 3, r"sft\.data: no key 'lenght'; did you mean 'length'"),
    ("sft.data.media.slot", 3, r"sft\.data\.media: no key 'slot'; did you mean 'slots'"),
    ("sft.data.sources.main.wieght", 3, r"sft\.data\.sources\.main: no key 'wieght'; did you mean 'weight'"),
    ("sft.data.sources.main.path", "nowhere.jsonl", r"sft\.data\.sources\.main\.path: there is no file"),
    ("sft.data.template", "chatlm", r"sft\.data\.template: there is no 'chatlm'; did you mean 'chatml'"),
    ("sft.data.template", "jinja:{% for %}", r"sft\.data\.template: .*no Jinja"),
    ("sft.data.sources.main.template", "jinja:hello", r"sft\.data\.sources\.main\.template: .*leaves out what"),
    ("sft.data.template", "chatml", r"sft\.data.*<\|im_start\|>"),  # which the tokenizer does not have
    (
        "sft.data.media.size",
        24,
        r"sft\.data\.media\.size: 24 gives 24 x 24 x 3; model\.encoders\.image reads 16 x",
    ),
    ("sft.data.media.resize", "zoom", r"sft\.data\.media\.resize: 'zoom' is none of"),
    ("sft.data.media.views", dict(type="data.views.Dynamik"), r"sft\.data\.media\.views\.type: no 'Dynamik'"),
    ("sft.valid", dict(every=2, data=dict(length=1)), r"sft\.valid\.data: requires"),
    ("sft.optimizer.weight_decai", 0.1, r"sft\.optimizer: no key 'weight_decai'; did you mean 'weight_decay'"),
    ("sft.optimizer.lr", "1e-4", r"sft\.optimizer\.lr: '1e-4' is not of type float"),
    ("sft.optimizer.lr", float("nan"), r"sft\.optimizer\.lr: nan is no finite number"),
    ("sft.optimizer.clip", None, r"sft\.optimizer\.clip: None is not of type float"),
    ("sft.optimizer.b1", 2.0, r"sft\.optimizer\.b1: 2\.0 must be below 1"),
    ("sft.optimizer.b2", 1, r"sft\.optimizer\.b2: 1 must be below 1"),
    ("sft.optimizer.eps", 0.0, r"sft\.optimizer\.eps: 0\.0 must be above 0"),
    ("sft.optimizer.warmup", 6, r"sft\.optimizer\.warmup: 6 is neither a fraction below 1 nor .* the stage's 6"),
    ("sft.optimizer.schedule", "constant", r"sft\.optimizer\.final: 0\.1; a constant schedule"),
    ("sft.optimizer.lr_factors", [[".", "fast"]], r"sft\.optimizer\.lr_factors: .* is not of type"),
    ("sft.optimizer.lr_factors", [[".", -1.0]], r"sft\.optimizer\.lr_factors: -1\.0 is below 0"),
    ("sft.optimizer.decay", [["kernel$", True]], r"sft\.optimizer\.decay: no rule covers"),
    ("sft.losses", {}, r"sft\.losses: there are none"),
    ("sft.losses.next_token.type", "objectives.language.next_tokn", r"losses\.next_token\.type: no 'next_tokn'"),
    ("sft.losses.loss", LM, r"sft\.losses\.loss: the metrics have something else under 'loss'"),
    ("sft.losses.accuracy", LM, r"sft\.losses: two of them report accuracy"),
    ("sft.losses.next_token.weight", "much", r"sft\.losses\.next_token\.weight: 'much' is no number"),
    ("sft.data.media.fill", [300, -1, 0], r"sft\.data\.media\.fill: 300 is above 255"),
    ("sft.data.media.token", "<nope>", r"sft\.data\.media\.token: the tokenizer has no special token '<nope>'"),
    ("sft.data.sources.main.weight", 0, r"sft\.data\.sources: none has a weight above 0"),
    ("sft.trainable", [], r"sft\.trainable: there are no rules"),
    ("sft.trainable", ["^projektors/"], r"sft\.trainable.*projektors"),
    ("sft.lora", [["layers/attn/", dict(rank=2, alpha=4)]], r"sft\.lora.*layers/attn/"),
    ("sft.batch", 3, r"sft\.batch: 3 rows cannot be split over data x fsdp = 1 devices in accumulate = 2 parts"),
    ("sft.batch", 10**9, r"sft\.batch: 1,000,000,000 rows of 48 tokens; a step takes"),
    ("sft.steps", 0, r"sft\.steps: 0 is below 1"),
    ("sft.ema", 1.0, r"sft\.ema: 1\.0 must be below 1"),
]
OF_A_RUN = [
    ("evaluation", dict(ppl=dict(type="evaluation.benchmarks.perplexty.evaluate")), r"evaluation\.ppl\.type: no"),
    ("evaluation", dict(ppl=PERPLEXITY | dict(window=1)), r"evaluation\.ppl.*no key 'window'; did you.*'windows'"),
    (
        "evaluation",
        dict(ppl=PERPLEXITY | dict(stage="stf")),
        r"evaluation\.ppl\.stage: no stage 'stf'; did.*'sft'",
    ),
    ("mesh", dict(fsdp=0, data=-1), r"mesh\.fsdp: 0 is no size of an axis"),
    ("mesh", dict(fdsp=1), r"mesh: .*'fdsp'"),
    ("stages", [], r"stages: there are none"),
    ("stages", ["sft", "sft"], r"stages: 'sft' stands there twice"),
    ("stages", ["pretrain", "stf"], r"the stage 'stf' has no section"),
    ("precision.param_dtype", "float64", r"precision\.param_dtype: 'float64': what is trained is float32"),
    ("precision.param_dtype", "bfloat16", r"precision\.param_dtype: 'bfloat16': what is trained is float32"),
    ("precision.compute_dtype", "float64", r"precision\.compute_dtype: no 'float64'; did you mean"),
    ("model.encoders", {}, r"model: encoders \[\] and projectors \['image'\] differ"),
    ("model.backbone.kv_heads", 3, r"model\.backbone\.kv_heads: 3 does not divide heads=2"),
    ("model.backbone.depth", 0, r"model\.backbone\.depth: 0 is below 1"),
    ("model.backbone.heads", "2", r"model\.backbone\.heads: '2' is not of type int"),
    (f"{IMAGE}.layer", 9, r"model\.encoders\.image\.layer: 9; of 1 layers it is -2 to 1"),
    (f"{IMAGE}.kv_heads", 3, r"model\.encoders\.image\.kv_heads: 3 does not divide heads=2"),
    ("model.fusion", "slice", r"model\.fusion: no 'slice'; did you mean 'splice'"),
    ("model.backbone.param_dtype", "bfloat16", r"model\.backbone\.param_dtype: no 'bfloat16'"),
    ("model.backbone.dtype", 5, r"model\.backbone\.dtype: no 5"),
    ("model.backbone.additional_vocab", 10**5, r"model\.backbone\.additional_vocab: 100000 is not below vocab"),
    ("model.backbone.norm_eps", -1.0, r"model\.backbone\.norm_eps: -1\.0 is below 0"),
    ("model.backbone.rope_fraction", 2.0, r"model\.backbone\.rope_fraction: 2\.0 is above 1"),
    ("model.backbone.rope_scaling", {}, r"model\.backbone\.rope_scaling: type None is none of 'linear'"),
    ("model.backbone.rope_scaling", dict(type="linear"), r"model\.backbone\.rope_scaling: requires factor"),
    ("model.backbone.rope_scaling", dict(type="linear", factor=0), r"rope_scaling\.factor: 0 must be above 0"),
    ("model.backbone.rope_scaling", dict(type="yarn", factor=2), r"rope_scaling: requires original_max_posit"),
    ("model.backbone.rope_sections", [-1, 9], r"rope_sections: -1 is below 0"),
    (f"{IMAGE}.patch", 0, r"model\.encoders\.image\.patch: 0 is below 1"),
    (f"{IMAGE}.width", -1, r"model\.encoders\.image\.width: -1 is below 1"),
    (f"{IMAGE}.std", [0, 1, 1], r"model\.encoders\.image\.std: 0 must be above 0"),
    ("model.projectors.image.depth", 0, r"model\.projectors\.image\.depth: 0 is below 1"),
    ("model.projectors.image.factor", 0, r"model\.projectors\.image\.factor: 0 is below 1"),
    ("model.projectors.image", PERCEIVER | dict(latents=0), r"model\.projectors\.image\.latents: 0 is below 1"),
    ("model.projectors.image", PERCEIVER | dict(heads=-1), r"model\.projectors\.image\.heads: -1 is below 1"),
    (f"{IMAGE}.final_norm", "pool", r"model\.encoders\.image\.final_norm: 'pool' is not of type"),
    (f"{IMAGE}.rope_theta", 1e4, r"model\.encoders\.image\.rope_theta, alibi: this encoder's positions are 'lea"),
    (f"{IMAGE}.alibi", True, r"model\.encoders\.image\.rope_theta, alibi: this encoder's positions are 'lea"),
    (IMAGE, SMALLEST, r"model\.encoders\.image\.width: 4; position='sincos2d' takes multiples of 4 from 8 on"),
    (IMAGE, EFFICIENT | dict(layer=9), r"model\.encoders\.image\.layer: 9; of 9 hidden states it is -9 to 8"),
    (IMAGE, EFFICIENT | dict(stages=[[1, 0, 1, 1, 8]]), r"model\.encoders\.image\.stages: 0 is below 1"),
    (
        IMAGE,
        EFFICIENT | dict(stages=[[1]]),
        r"image\.stages: \[\[1\]\] is not of type tuple\[tuple\[int, int, int",
    ),
    ("load", [["backbon", "hf:nowhere"]], r"load: the model has no part 'backbon'"),
    ("load", [["backbone", "hf:nowhere"]], r"nowhere"),
    ("load", [["backbone", "hv:nowhere"]], r"load: 'hv:nowhere' begins with none of 'hf:'"),
    ("load", [["encoders/image", "package:nope"]], r"nope"),
    ("model.backbone.norm", "batch", r"model\.backbone\.norm: no 'batch'; known: layer"),
    ("model.backbone.activation", "gelo", r"model\.backbone\.activation: no 'gelo'; did you mean 'gelu'"),
    (
        "model.projectors.image.reduce",
        "avarage",
        r"projectors\.image\.reduce: no 'avarage'; did you mean 'average",
    ),
    (f"{IMAGE}.stem", "path", r"model\.encoders\.image\.stem: no 'path'; did you mean 'patch'"),
    ("seed", -1, r"seed: -1 is below 0"),
    ("seeds", 1, r"no key 'seeds'; did you mean 'seed'"),
    ("tokenizer.path", "nowhere.model", r"tokenizer\.path: there is no nowhere\.model"),
]
CROSS = [
    ("model.backbone.xattn.every", 0, r"model\.backbone\.xattn\.every: 0 is below 1"),
    ("model.backbone.xattn.every", None, r"model\.backbone\.xattn: requires every"),
    ("model.backbone.xattn.first", 2, r"model\.backbone\.xattn\.first: 2 is above 1"),
    ("model.backbone.xattn.evry", 2, r"model\.backbone\.xattn: no key 'evry'; did you mean 'every'"),
    ("sft.data.media.slots", 0, r"sft\.data\.media\.slots: is 0, and cross-attention requires 1"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_data(folder)
    return folder


def changed(raw, key, value):
    raw = copy.deepcopy(raw)
    *path, last = key.split(".")
    node = raw
    for part in path:
        node = node[part]
    node[last] = value
    if value is None and key.endswith("every"):
        del node[last]
    return raw


def refused(raw, folder, message):
    workdir = folder / "never"
    with pytest.raises(UserError, match=message):
        train(raw, workdir)
    assert not workdir.exists()


@pytest.mark.parametrize(("key", "value", "message"), OF_A_STAGE)
def test_a_mistake_of_the_last_stage(key, value, message, folder):
    refused(changed(config(folder, accumulate=2), key, value), folder, message)


@pytest.mark.parametrize(("key", "value", "message"), OF_A_RUN)
def test_a_mistake_of_the_run(key, value, message, folder):
    refused(changed(config(folder), key, value), folder, message)


@pytest.mark.parametrize(("key", "value", "message"), CROSS)
def test_a_mistake_about_cross_attention(key, value, message, folder):
    refused(changed(config(folder, "xattn"), key, value), folder, message)


def test_a_tokenizer_that_is_none(folder):
    (folder / "picture.model").write_bytes((folder / "0.png").read_bytes())
    raw = changed(config(folder), "tokenizer.path", str(folder / "picture.model"))
    refused(raw, folder, r"tokenizer\.path: .*picture\.model is no sentencepiece model, or damaged")


def test_parts_that_do_not_fit(folder):
    slots = r"pretrain\.data\.media\.slots: 2, but the model has no encoder; set it to 0"
    for fusion, said in (("xattn", r"model\.encoders: there are none"), ("splice", slots)):
        raw = config(folder, fusion)
        raw["model"] |= dict(encoders={}, projectors={})
        refused(raw, folder, said)
    raw = config(folder)
    for parts in ("encoders", "projectors"):
        raw["model"][parts] = dict(picture=raw["model"][parts]["image"])
    refused(raw, folder, r"model\.encoders: \['picture'\]: data has media of the kind 'image' alone")
    raw = config(folder)
    raw["sft"]["losses"]["contrast"] = CONTRAST
    raw["sft"]["data"]["media"]["slots"] = 0
    refused(raw, folder, r"image_text: compares pictures with texts, and rows have none")


def test_a_loss_may_have_any_name_and_an_objective_may_stand_twice(folder, tmp_path):
    raw = config(folder, steps=2) | dict(stages=["sft"])
    raw.pop("pretrain")
    raw["sft"]["losses"] = dict(next_token=LM, lm=LM | dict(weight=0.5))
    train(raw, tmp_path / "run")
    _, line = metrics(tmp_path / "run", "sft")
    assert line["lm"] == line["next_token"] and line["lm_accuracy"] == line["accuracy"]
    assert line["loss"] == pytest.approx(1.5 * line["lm"], rel=1e-6)


def test_what_is_set_up_is_what_is_trained(folder):
    raw = config(folder)
    run = prepare(raw, folder / "never")
    assert list(run.setups) == ["pretrain", "sft"] and not (folder / "never").exists()
    batch = run.setups["sft"].batch
    real = next(run.data(run.config.stage("sft"), "train").batches(raw["sft"]["batch"]))
    assert batch.tokens.shape == real.tokens.shape
    assert batch.media["image"].values.shape == real.media["image"].values.shape
