"""Folders of weights under the names that `transformers` has given to tensors since 4.40: what `mmjax convert`
makes of them has the logits of `transformers` on the same folder, and the same weights whatever the layout."""

import re

import numpy as np
import pytest
import torch
from parity import TOLERANCE, VOCAB, batch_of, error, imported, logits, save, tabulate
from safetensors.torch import load_file, save_file
from small_models import TEXTS, WHOLE, small_model

from mmjax import tree
from mmjax.hub.folder import HubFolder

HEADING = """## Layouts of files

Which names of tensors convert, and the largest error of the logits to those of `transformers` on the same folder;
towers and projectors are compared by their bits. All files are written by the version installed; the names of 4.40
and 4.52 are made from its own by rule. An empty cell: the family has no such layout, or it is not tried."""

# What stands below a level of its own, `vision_model`, in the towers of CLIP and SigLIP.
BELOW = r"(embeddings\.(class|patch|position)_embedding\b|encoder\.layers|\w+_la\w*norm|head)"


def saved(model, state):
    return state


def in_memory(model, state):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def of_4_40(model, state):
    """Towers of CLIP and SigLIP with a level of their own, a head that is tied and yet saved, and buffers."""
    made = {re.sub(rf"^vision_tower\.(?={BELOW})", "vision_tower.vision_model.", n): t for n, t in state.items()}
    table = next(name for name in made if re.search(r"(embed_tokens|embed_in|wte)\.weight$", name))
    head = "embed_out.weight" if table.startswith("gpt_neox") else "lm_head.weight"
    made.setdefault(f"language_model.{head}" if table.startswith("language_model.") else head, made[table].clone())
    for name in list(made):
        if found := re.match(r"(.*\blayers\.\d+\.(self_attn|attention)\.)(q_proj|query_key_value)\.weight$", name):
            made[f"{found[1]}rotary_emb.inv_freq"] = torch.ones(4)
    return made


def level_in_memory(model, state):
    """Names in memory of 4.52 to 4.57, whose towers have that level, too."""
    below, names = rf"^model\.vision_tower\.(?={BELOW})", in_memory(model, state)
    made = {re.sub(below, "model.vision_tower.vision_model.", name): tensor for name, tensor in names.items()}
    return made if made.keys() != names.keys() else None


def base_saved(model, state):
    """The base model alone, by its own save_pretrained."""
    return None if model.config.tie_word_embeddings is False else "base"


def base_in_memory(model, state):
    made = {name: tensor.clone() for name, tensor in model.base_model.state_dict().items()}
    return None if model.config.tie_word_embeddings is False else made


LAYOUTS = {
    "saved by 5.23": saved,
    "saved by 4.40": of_4_40,
    "in memory of 5.23": in_memory,
    "in memory of 4.52": level_in_memory,
    "base model saved": base_saved,
    "base model in memory": base_in_memory,
}


def arrays(params):
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(params).items()}


@pytest.mark.parametrize("name", [*TEXTS, *WHOLE])
@torch.no_grad()
def test_logits_from_every_layout_of(name, tmp_path):
    model = small_model(name)
    state = load_file(save(model, tmp_path / "0") / "model.safetensors")
    ids = [int(i) for i in np.random.default_rng(0).integers(8, VOCAB, 24)]
    ours = reference = None
    for number, (layout, layers) in enumerate(LAYOUTS.items()):
        tensors = layers(model, state)
        if tensors is None:
            continue
        folder = save(model, tmp_path / f"{number}")
        if tensors == "base":
            model.base_model.save_pretrained(folder)
        else:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        theirs, found = type(model).from_pretrained(folder, output_loading_info=True)
        assert not found["missing_keys"], layout
        built, params = imported(folder, tmp_path / f"{number}-run")
        if ours is None:
            batch = batch_of([[ids]], 24)
            if name == "paligemma":  # a prompt is a prefix there, whose tokens all see one another
                batch.causal[:, 1:] = 0
            reference, ours = arrays(params), logits(built, params, batch)[0]
        assert reference.keys() == arrays(params).keys()
        for path, array in arrays(params).items():
            np.testing.assert_array_equal(array, reference[path], err_msg=f"{layout}: {path}")
        worst = error(ours, theirs.eval()(torch.tensor([ids])).logits[0])
        assert worst < TOLERANCE, layout
        tabulate(HEADING, name, layout, f"{worst:.1e}")
    names = {HubFolder(folder).family.module(one) for one in HubFolder(folder).tensors.specs}
    if "DINOv2" not in name:  # whose projections have other names in memory again
        assert names <= set(model.state_dict()), "adapters are for other modules"
