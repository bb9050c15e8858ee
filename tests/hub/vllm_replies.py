"""`python vllm_replies.py FOLDER PROMPTS REPLIES`: 32 greedy tokens of vLLM behind each prompt of a JSON file.

A prompt is vLLM's own dict, with `pictures`, a list of files. In a process of its own: vLLM keeps its memory.
"""

import json
import os
import sys
from pathlib import Path

from PIL import Image

os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}


def main(folder, prompts, replies):
    from vllm import LLM, SamplingParams

    prompts = json.loads(Path(prompts).read_text())
    limits = {"image": 2, "video": 0} if any(prompt.get("pictures") for prompt in prompts) else None
    for prompt in prompts:
        if shown := prompt.pop("pictures", []):
            prompt["multi_modal_data"] = {"image": [Image.open(path) for path in shown]}
    engine = LLM(folder, dtype="float32", enforce_eager=True, max_num_seqs=4, limit_mm_per_prompt=limits)
    found = engine.generate(prompts, SamplingParams(temperature=0, max_tokens=32, ignore_eos=True))
    Path(replies).write_text(json.dumps([list(reply.outputs[0].token_ids) for reply in found]))


if __name__ == "__main__":
    main(*sys.argv[1:])
