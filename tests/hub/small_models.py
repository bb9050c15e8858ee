"""A small model of `transformers` for each family that converts, tied, so that its base model is all of it."""

import transformers
from parity import VOCAB, randomise

TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=True,
)
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
CLIP = dict(model_type="clip_vision_model", **VISION)
SIGLIP = dict(model_type="siglip_vision_model", **VISION, projection_dim=32)
LLAMA = dict(model_type="llama", **TEXT)
TIED = dict(tie_word_embeddings=True)
ROPE = dict(rope_type="default", rope_theta=1e4, mrope_section=[1, 1, 2])
TEXTS = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": dict(head_dim=8),
    "gemma": dict(head_dim=8),
    "gemma2": dict(head_dim=8),
    "gemma3_text": dict(head_dim=8),
    "phi": dict(tie_word_embeddings=False),  # a tied head of Phi's would have a bias, which is not known here
    "opt": dict(ffn_dim=48, word_embed_proj_dim=32),
    "gpt_neox": {},
    "mpt": dict(d_model=32, n_heads=4, n_layers=2),
}
GEMMA = LLAMA | dict(model_type="gemma", head_dim=8)
QWEN = dict(depth=2, num_heads=2, patch_size=14)
WHOLE = {
    "llava": ("Llava", dict(vision_config=CLIP, text_config=LLAMA, image_token_index=7, **TIED)),
    "llava of SigLIP and Mistral": (
        "Llava",
        dict(
            vision_config=SIGLIP,
            text_config=LLAMA | dict(model_type="mistral"),
            image_token_index=7,
            vision_feature_select_strategy="full",
            **TIED,
        ),
    ),
    "llava of DINOv2": (
        "Llava",
        dict(vision_config=dict(model_type="dinov2", **VISION), text_config=LLAMA, image_token_index=7, **TIED),
    ),
    "llava_next": ("LlavaNext", dict(vision_config=CLIP, text_config=LLAMA, image_token_index=7, **TIED)),
    "paligemma": (
        "PaliGemma",
        dict(
            vision_config=SIGLIP,
            text_config=LLAMA | dict(model_type="gemma"),
            image_token_index=7,
            projection_dim=32,
        ),
    ),
    "idefics3": ("Idefics3", dict(vision_config=VISION, text_config=LLAMA, image_token_id=7, **TIED)),
    "smolvlm": ("SmolVLM", dict(vision_config=VISION, text_config=LLAMA, image_token_id=7, **TIED)),
    "internvl": (
        "InternVL",
        dict(vision_config=VISION, text_config=LLAMA | dict(model_type="qwen2"), image_token_id=7, **TIED),
    ),
    "qwen2_vl": (
        "Qwen2VL",
        dict(
            vision_config=dict(embed_dim=32, hidden_size=32, **QWEN),
            text_config=TEXT | dict(rope_parameters=ROPE),
            **TIED,
        ),
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        dict(
            vision_config=dict(
                hidden_size=32, intermediate_size=48, out_hidden_size=32, fullatt_block_indexes=[1], **QWEN
            ),
            text_config=TEXT | dict(rope_parameters=ROPE),
            **TIED,
        ),
    ),
}


def small_model(name):
    """A random model of `transformers`; tied, so that a base model alone is all of it."""
    if name in TEXTS:
        config = transformers.AutoConfig.for_model(name, **TEXT | TEXTS[name])
        return randomise(transformers.AutoModelForCausalLM.from_config(config))
    kind, config = WHOLE[name]
    made = getattr(transformers, f"{kind}Config")(**config)
    return randomise(getattr(transformers, f"{kind}ForConditionalGeneration")(made))
