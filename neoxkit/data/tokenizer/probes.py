"""Texts on which a converted tokenizer is compared with the library that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

CODE = "def f(x):\n\treturn {'a': x ** 2}  # why?\r\n\r\n\n    if not x != 0x1F:\n        pass\n"

PROBES: tuple[str, ...] = (
    "",
    " ",
    "a",
    "  a  b ",
    "\n",
    "\t\t x\t",
    "\u2581a \u2581",
    "Hello world, it's 3.14159 and 1,234,567,890 o'clock; we'LL see they'Ve DON'T 'S 'tis.",
    CODE,
    "e\u0301 \u00e9 n\u0303 \u1e69 s\u0323\u0307 \u017f '\u017f \u212a \u00df \u0130i",
    "\u1112\u1161\u11ab \ud55c \uac01 \u4f60\u597d\uff0c\u4e16\u754c\u3002 \U00020bb7",
    "\u91ce\u5bb6 \u3053\u3093\u306b\u3061\u306f",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\ufdfd \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0e01\u0e33",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "x\u00a0y\u2003z\u200bw\ufeffv\u3000u\u2028t\u2029s\x85r\x0bq\x0cp\x1co",
    "\x00a\x00\x00 \x01\x7f\x1b[0m",
    "\ue000 \U000f0000 \U0010ffff \ufffd \ufffe",
    "\ufb01 \uff21\uff11 \u00bd \u2167 \u2460 \u0663\u0664 x\u00b2",
    "<s>a</s> <unk> <pad><|endoftext|> [INST] x [/INST] <0x41> <|im_start|>",
    "http://example.org/?a=b&c=%20#d someone@example.org C:\\x\\y",
    "a" * 1000,
    "ab" * 500 + "aba" * 300,
    "=" * 100 + "-" * 99 + "_" * 77 + "#" * 33 + "." * 50,
    "\n".join(" " * width + "x" for width in range(66)),
    "\n".join("\t" * width + "x" + " " * width for width in range(34)),
    "\n" * 37 + "x" + "\r\n" * 9 + " \n \n  \n",
    "antidisestablishmentarianism " * 3 + "Donaudampfschifffahrtsgesellschaft",
    *(" " * width for width in range(2, 130)),
    *(" " * width + "Travel" for width in range(1, 130)),
)
"""Writing systems, composed and decomposed letters, emoji of several code points, runs, code, names of tokens."""


def differing(made: Any, judge: Callable[[str], list[int]], texts: Iterable[str]) -> str | None:
    """The first text to which a `tokenizers` tokenizer gives other ids than the judge, or None."""
    return next((text for text in texts if made.encode(text, add_special_tokens=False).ids != judge(text)), None)
