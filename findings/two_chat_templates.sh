#!/usr/bin/env bash
# A folder with chat_template.json and chat_template.jinja, as a checkpoint that was saved by an old and then by a new
# release has them: the processor takes the .json, the tokenizer the .jinja, and neither says so.
#
# transformers 5.23.0, tokenizers 0.23.3, jinja2 3.1.6, Python 3.11. Seen:
#   tokenizer: new template: hi
#   processor: old template: hi
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3 jinja2==3.1.6 numpy==2.3.5
cat > "$folder/try.py" <<'PYTHON'
import json, os, sys, warnings

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
from pathlib import Path

import tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin


class Processor(ProcessorMixin):
    """The least of a processor: a tokenizer alone."""

    attributes = ["tokenizer"]
    tokenizer_class = "PreTrainedTokenizerFast"

    def __init__(self, tokenizer=None, chat_template=None):
        super().__init__(tokenizer, chat_template=chat_template)


folder = Path(sys.argv[1])
words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "hi": 1}, "[UNK]"))
PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
(folder / "chat_template.json").write_text(json.dumps({"chat_template": "old template: {{ messages[0]['content'] }}"}))
(folder / "chat_template.jinja").write_text("new template: {{ messages[0]['content'] }}")
talk = [{"role": "user", "content": "hi"}]
tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
processor = Processor.from_pretrained(folder)
print("tokenizer:", tokenizer.apply_chat_template(talk, tokenize=False))
print("processor:", processor.apply_chat_template(talk, tokenize=False))
PYTHON
mkdir "$folder/checkpoint"
seen=$("$folder/venv/bin/python" "$folder/try.py" "$folder/checkpoint" 2>/dev/null)
echo "$seen"
[ "$seen" = "tokenizer: new template: hi
processor: old template: hi" ]
