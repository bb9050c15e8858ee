"""Peak memory and speed of `mmjax convert`, there and back, on a synthetic sharded checkpoint.

    python benchmarks/convert_memory.py --gigabytes 14 --folder /tmp/convert

Writes a Llama of Llama-2-7B's width in bfloat16, as deep as the size asks for, in shards of 5 GB; converts it in a
process of its own each way; prints each one's peak resident memory (VmHWM of Linux), seconds and GB/s, beside the
largest tensor. Needs three times the size on disk, and leaves nothing there.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers

from mmjax.hub.family import family
from mmjax.hub.table import moves, theirs_specs
from mmjax.hub.tensors import SafetensorsFolder, SafetensorsWriter, Spec

WIDTH, MLP, VOCAB = 4096, 11_008, 32_000
LAYER_BYTES = 2 * (4 * WIDTH**2 + 3 * WIDTH * MLP)


def write_checkpoint(folder: Path, depth: int) -> None:
    """A Hugging Face folder of random weights."""
    config = dict(
        model_type="llama",
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_hidden_layers=depth,
        num_attention_heads=32,
        vocab_size=VOCAB,
        rms_norm_eps=1e-5,
    )
    llama = family("llama")
    layer = {
        **{f"attention/{name}/kernel": (WIDTH, WIDTH) for name in ("query", "key", "value", "out")},
        **{f"mlp/{name}/kernel": (WIDTH, MLP) for name in ("gate", "up")},
        "mlp/down/kernel": (MLP, WIDTH),
        "attention_norm/scale": (WIDTH,),
        "mlp_norm/scale": (WIDTH,),
    }
    shapes = {f"layers/{path}": (depth, *shape) for path, shape in layer.items()}
    shapes |= {"embedding": (VOCAB, WIDTH), "norm_out/scale": (WIDTH,), "head/kernel": (WIDTH, VOCAB)}
    ours = {path: Spec(shape, np.dtype(ml_dtypes.bfloat16)) for path, shape in shapes.items()}
    specs = theirs_specs(moves(llama.rows(llama.spec(config)), ours), ours)
    noise = np.random.default_rng(0).normal(size=VOCAB * WIDTH).astype(ml_dtypes.bfloat16)
    with SafetensorsWriter(folder, specs) as writer:
        for name, spec in specs.items():
            writer.put(name, noise[: int(np.prod(spec.shape))].reshape(spec.shape))
    (folder / "config.json").write_text(json.dumps(config))
    words = tokenizers.models.WordLevel({f"w{i}": i for i in range(VOCAB)}, unk_token="w0")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))


def converted(source: Path, target: Path) -> tuple[float, float]:
    """Converts in a process of its own -> (its peak memory in GB, seconds)."""
    script = (
        "import sys; from mmjax.convert import convert; convert(sys.argv[1], sys.argv[2]); "
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    begun = time.perf_counter()
    found = subprocess.run(
        [sys.executable, "-c", script, source, target], check=True, stdout=subprocess.PIPE, text=True
    )
    return int(found.stdout.split()[-2]) * 1024 / 1e9, time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=14)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    depth = max(1, round((given.gigabytes * 1e9 - 4 * VOCAB * WIDTH) / LAYER_BYTES))
    given.folder.mkdir(parents=True)
    try:
        write_checkpoint(given.folder / "hf", depth)
        tensors = SafetensorsFolder(given.folder / "hf")
        sizes = [int(np.prod(spec.shape)) * spec.dtype.itemsize / 1e9 for spec in tensors.specs.values()]
        files = len(list((given.folder / "hf").glob("*.safetensors")))
        print(f"{sum(sizes):.1f} GB in {files} files, the largest tensor {max(sizes):.2f} GB")
        for what, source, target in (("import", "hf", "run"), ("export", "run", "back")):
            peak, seconds = converted(given.folder / source, given.folder / target)
            print(f"{what}: peak {peak:.2f} GB, {seconds:.0f} s, {sum(sizes) / seconds:.2f} GB/s")
    finally:
        shutil.rmtree(given.folder)


if __name__ == "__main__":
    main()
