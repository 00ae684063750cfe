"""Text without a download: the docstrings of four installed packages, and a tokenizer trained on them.

What they say depends on the packages' versions. None of it is stored: their licences (PSF, BSD, Apache) are theirs.
"""

import ast
import random
import re
import sysconfig
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PACKAGES = ("python", "numpy", "torch", "transformers")
"""The first is Python's standard library."""
SHORTEST = 120
"""Characters; shorter docstrings say little about where they come from."""


@dataclass(frozen=True)
class Docstring:
    """A text, the number of its package, and whether it is held out for the test."""

    text: str
    package: int
    held_out: bool


def docstrings(most: int) -> list[Docstring]:
    """Read at most so many docstrings of each package, all that are in a file in the same part of the data."""
    found = []
    for number, package in enumerate(PACKAGES):
        folder = _folder(package)
        files = sorted(path for path in folder.rglob("*.py") if _is_wanted(path.relative_to(folder)))
        random.Random(0).shuffle(files)
        own: dict[str, bool] = {}  # each text once
        for file in files:
            held_out = zlib.crc32(file.relative_to(folder).as_posix().encode()) % 6 == 0
            for text in _texts_in(file):
                own.setdefault(text, held_out)
            if len(own) >= most:
                break
        found += [Docstring(text, number, held_out) for text, held_out in list(own.items())[:most]]
    random.Random(0).shuffle(found)
    return found


def without_names(text: str) -> str:
    """Return the text with the names of the packages made alike: they would tell where it comes from."""
    return re.sub(r"(?i)\b(np|pytorch|hugging ?face|" + "|".join(PACKAGES) + r")\b", "package", text)


def tokenizer_of(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer: byte-level BPE, and the marks that BERT puts around a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["[PAD]", "[CLS]", "[SEP]"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", eos_token="[SEP]"
    )


def _folder(package: str) -> Path:
    if package == "python":
        return Path(sysconfig.get_path("stdlib"))
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: pip install 'fggp[transformers]'")
    return Path(spec.submodule_search_locations[0])


def _is_wanted(path: Path) -> bool:
    return not {"site-packages", "dist-packages", "test", "tests", "testing"} & {*path.parts}


def _texts_in(file: Path) -> Iterator[str]:
    try:
        left: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    except (SyntaxError, UnicodeDecodeError):  # examples of other versions and encodings
        return
    while left:
        node = left.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            if len(text) >= SHORTEST:
                yield text
            if not isinstance(node, ast.FunctionDef):  # what is inside of a function is seldom described
                left += node.body
