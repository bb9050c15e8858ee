"""What somebody asks, before any model sees it."""

import pytest

from mmjax.errors import UserError
from mmjax.inference.prompts import ask


@pytest.mark.parametrize("prompt", [None, 5, ["a"], b"a"])
def test_a_prompt_that_is_no_text(prompt):
    for pictures in ([], ["a.png"]):
        with pytest.raises(UserError, match="is no text, but of type"):
            ask(prompt, pictures)
