"""Benchmarks of somebody's own, for tests: they ask in the plainest way, and tell that they were called."""

from mmjax.data.sources import open_source
from mmjax.evaluation.samples import asked
from mmjax.inference.chat import Sampling

CALLS: list[str] = []
FAIL: list[BaseException] = []  # raised, one each time, by `fails` and between the two halves of `halves`


def counts(assistant, *, data_dir, word):
    CALLS.append(word)
    return {"accuracy": 0.5, "examples": [{"id": "1", "image": b"x", "answer": "a", "prediction": "b"}]}


def fails(assistant, *, data_dir):
    CALLS.append("fails")
    if FAIL:
        raise FAIL.pop()
    return {"accuracy": 0.25}


def halves(assistant, *, data_dir, test):
    source = open_source(test, "", data_dir)
    prompts = [asked(source[i], "What colour is it?") for i in range(len(source))]
    first = assistant.generate(prompts[:8], Sampling(max_new=2))
    if FAIL:
        raise FAIL.pop()
    return {"answers": len(first + assistant.generate(prompts[8:], Sampling(max_new=2)))}
