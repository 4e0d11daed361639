"""Small tokenizers for the nano models: byte-level BPE from a few texts, saved in the layouts of Qwen2 and CLIP."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Special tokens of Qwen2-VL and Qwen2.5-VL that the nano models use, in the order of their ids."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML with Qwen's default system message and one placeholder per picture or video."""

CLIP_END = "</w>"
"""CLIP's mark at the end of a word."""

QWEN_MERGES = 400
CLIP_MERGES = 200
"""Upper bounds on the number of merges: a few hundred beside the 256 bytes (CLIP has each byte twice)."""


def byte_symbols() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary: itself, or one from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spare = (byte for byte in range(256) if byte not in plain)
    return {**{byte: chr(byte) for byte in plain}, **{byte: chr(256 + i) for i, byte in enumerate(spare)}}


def learn_merges(words: Iterable[Sequence[str]], limit: int) -> list[tuple[str, str]]:
    """At most `limit` byte-pair merges over words (sequences of symbols): most frequent pair first, ties by spelling.

    Learning stops when every word is one token: the texts of a nano model are few and short.
    """
    counts = Counter(tuple(word) for word in words)
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged: Counter[tuple[str, ...]] = Counter()
        for word, count in counts.items():
            merged[_join(word, best)] += count
        counts = merged
    return merges


def _join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word with each occurrence of the pair joined to one symbol, from left to right."""
    joined: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            joined.append(pair[0] + pair[1])
            i += 2
        else:
            joined.append(word[i])
            i += 1
    return tuple(joined)


def _spell(text: str) -> list[str]:
    symbols = byte_symbols()
    return [symbols[byte] for byte in text.encode()]


def save_qwen_tokenizer(
    folder: Path, texts: Sequence[str], added_tokens: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """Write a Qwen2 tokenizer for the words of `texts`; `added_tokens` are special tokens with the last ids.

    A word of the texts is one token, as long as `QWEN_MERGES` suffice; other text is split into bytes. Ids of the same
    texts do not depend on `added_tokens`.
    """
    from transformers import Qwen2Tokenizer

    special = [*QWEN_SPECIAL, *added_tokens]
    words = []
    for text in texts:
        plain_text = re.sub("|".join(map(re.escape, special)), "\n", text)
        words += [_spell(word) for word in re.findall(r" ?[^\W\d_]+|\d| ?[^\s\w]+", plain_text)]
    merges = learn_merges(words, QWEN_MERGES)
    learnt = [*sorted(byte_symbols().values()), *dict.fromkeys(a + b for a, b in merges)]
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate([*learnt, *special])},
        merges=list(merges),
        eos_token="<|im_end|>",
        extra_special_tokens=special,
        model_max_length=32768,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return _save(tokenizer, folder, learnt, merges)


def save_clip_tokenizer(folder: Path, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """Write a CLIP tokenizer for the words of `texts`; <|endoftext|> has the highest id, as in CLIP itself."""
    from transformers import CLIPTokenizer

    words = []
    for text in texts:
        for word in re.findall(r"[^\W\d_]+|\d|[^\s\w]+", text.lower()):
            spelt = _spell(word)
            words.append([*spelt[:-1], spelt[-1] + CLIP_END])
    merges = learn_merges(words, CLIP_MERGES)
    symbols = sorted(byte_symbols().values())
    learnt = [*symbols, *(symbol + CLIP_END for symbol in symbols), *dict.fromkeys(a + b for a, b in merges)]
    learnt += ["<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={token: i for i, token in enumerate(learnt)}, merges=list(merges), model_max_length=77
    )
    return _save(tokenizer, folder, learnt, merges)


def _save(
    tokenizer: PreTrainedTokenizerBase, folder: Path, learnt: Sequence[str], merges: Sequence[tuple[str, str]]
) -> PreTrainedTokenizerBase:
    """Files of transformers 5 (tokenizer.json and its config) and of transformers 4 (vocab.json, merges.txt)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    vocab = {token: i for i, token in enumerate(learnt)}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False) + "\n", encoding="utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer


UMT5_SPECIAL = ("<pad>", "</s>", "<s>", "<unk>")
"""Special tokens of UMT5 in the order of their ids."""


def save_umt5_tokenizer(folder: Path, texts: Sequence[str]) -> int:
    """Write a tokenizer.json in UMT5's form (unigrams, a prompt ends with </s>); the number of its tokens.

    A word of the texts is one token; other words are spelled in ASCII characters, and any other one is <unk>.
    """
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    words = sorted({f"▁{word}" for text in texts for word in text.split()})
    characters = ["▁", *(chr(code) for code in range(ord("!"), 0x7F))]
    scores = {**dict.fromkeys(UMT5_SPECIAL, 0.0), **dict.fromkeys(words, -4.0), **dict.fromkeys(characters, -8.0)}
    tokenizer = Tokenizer(Unigram(list(scores.items()), unk_id=UMT5_SPECIAL.index("<unk>"), byte_fallback=False))
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    end = UMT5_SPECIAL[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {end}", pair=f"$A {end} $B {end}", special_tokens=[(end, UMT5_SPECIAL.index(end))]
    )
    tokenizer.add_special_tokens(list(UMT5_SPECIAL))
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), UMT5_SPECIAL, strict=True))
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return len(scores)
