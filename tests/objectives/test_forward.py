"""What an objective sees of a model: one forward pass a batch."""

import numpy as np

from mmjax.objectives.forward import Forward
from mmjax.types import Batch, Output


class Counting:
    """A model whose hidden states are its batch's tokens, and which counts its passes."""

    passes = 0

    def apply(self, params, batch):
        self.passes += 1
        return Output(hidden=batch.tokens)


def batch_of(number):
    tokens = np.full((1, 2), number, np.int32)
    return Batch(tokens, tokens, tokens, tokens, tokens)


def test_losses_share_a_pass():
    model, batch = Counting(), batch_of(1)
    forward = Forward(model, {})
    assert forward(batch) is forward(batch)
    assert model.passes == 1


def test_a_batch_that_is_gone_does_not_answer_for_the_next():
    """Python gives a freed object's id away again, most often at once."""
    forward = Forward(Counting(), {})
    for number in range(50):
        assert forward(batch_of(number)).hidden[0, 0] == number
