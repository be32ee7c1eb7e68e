"""Public corpora by name: where each lies today, and under which terms. Data alone; `fetch` fetches."""

from __future__ import annotations

from dataclasses import dataclass

from neoxkit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, which is files of a dataset on the Hugging Face Hub, or one zip archive with one file in it.

    `files` are patterns of names in the dataset `hub`. `archive` is a URL, `member` the file in it, `unpacked` that
    file's bytes and `md5` its checksum, as its maker publishes them. `about` is how much is fetched, in GB, where that
    is known beforehand; the Hub says it exactly. `key` is where a row has its text.
    """

    name: str
    says: str
    licence: str
    hub: str | None = None
    files: tuple[str, ...] = ()
    key: str = "text"
    archive: str | None = None
    member: str = ""
    unpacked: int = 0
    md5: str = ""
    about: float | None = None


def _wikipedia_of_2006(name: str, says: str, member: str, unpacked: int, md5: str, about: float) -> Corpus:
    return Corpus(
        name=name, says=says, licence="CC BY-SA 3.0", archive=f"http://mattmahoney.net/dc/{name}.zip",
        member=member, unpacked=unpacked, md5=md5, about=about,
    )  # fmt: skip


def _common_pile(name: str, says: str, licence: str) -> Corpus:
    hub = f"common-pile/{name}_filtered"
    return Corpus(name=name.replace("_", "-"), says=says, licence=licence, hub=hub, files=("*.json.gz",))


CORPORA: tuple[Corpus, ...] = (
    # http://mattmahoney.net/dc/textdata.html
    _wikipedia_of_2006("enwik8", "the first 100 MB of Wikipedia in 2006, XML", "enwik8", 10**8,
                       "a1fa5ffddb56f4953e226637dabbb36a", 0.036),
    _wikipedia_of_2006("enwik9", "the first GB of Wikipedia in 2006, XML", "enwik9", 10**9,
                       "e206c3450ac99950df65bf70ef61a12d", 0.323),
    _wikipedia_of_2006("text8", "100 MB of enwik9 as a to z and spaces", "text8", 10**8,
                       "3bea1919949baf155f99411df5fada7e", 0.031),
    Corpus(name="wikitext-2", says="good articles of Wikipedia, small", licence="CC BY-SA 3.0",
           hub="Salesforce/wikitext", files=("wikitext-2-raw-v1/train-*.parquet",)),
    Corpus(name="wikitext-103", says="good articles of Wikipedia", licence="CC BY-SA 3.0",
           hub="Salesforce/wikitext", files=("wikitext-103-raw-v1/train-*.parquet",), about=0.31),
    Corpus(name="wikipedia", says="English Wikipedia of November 2023", licence="CC BY-SA 3.0, GFDL",
           hub="wikimedia/wikipedia", files=("20231101.en/*.parquet",), about=11.6),
    Corpus(name="tinystories", says="stories for small models, written by a model", licence="CDLA-Sharing-1.0",
           hub="roneneldan/TinyStories", files=("data/train-*.parquet",), about=1.0),
    Corpus(name="pile", says="the Pile without the parts that were withdrawn (Books3 and others)", licence="mixed",
           hub="monology/pile-uncopyrighted", files=("train/*.jsonl.zst",)),
    Corpus(name="pile-val", says="the validation part of the same", licence="mixed",
           hub="monology/pile-uncopyrighted", files=("val.jsonl.zst",)),
    Corpus(name="pile-deduplicated", says="the Pile, deduplicated, which half of the Pythia models were trained on",
           licence="mixed", hub="EleutherAI/the_pile_deduplicated", files=("data/train-*.parquet",)),
    Corpus(name="proof-pile-2-arxiv", says="papers of arXiv", licence="mixed",
           hub="EleutherAI/proof-pile-2", files=("arxiv/train/*.jsonl.zst",)),
    Corpus(name="open-web-math", says="mathematics of the web", licence="ODC-BY 1.0",
           hub="EleutherAI/proof-pile-2", files=("open-web-math/train/*.jsonl.zst",)),
    Corpus(name="algebraic-stack", says="code about mathematics", licence="mixed",
           hub="EleutherAI/proof-pile-2", files=("algebraic-stack/train/*.jsonl.zst",)),
    _common_pile("arxiv_papers", "papers of arXiv under open licences", "CC BY and others"),
    _common_pile("pubmed", "biomedical papers under open licences", "CC BY and others"),
    _common_pile("caselaw_access_project", "decisions of US courts", "public domain"),
    _common_pile("stackexchange", "questions and answers of Stack Exchange", "CC BY-SA"),
    _common_pile("ubuntu_irc", "chats of Ubuntu's channels", "public domain"),
    _common_pile("github_archive", "issues and discussions of GitHub", "mixed, open"),
    _common_pile("project_gutenberg", "books of Project Gutenberg", "public domain"),
    _common_pile("uspto", "US patents", "public domain"),
    Corpus(name="openwebtext", says="pages that Reddit linked to, after GPT-2's data", licence="CC0 (the collection)",
           hub="Skylion007/openwebtext", files=("*.parquet",)),
    Corpus(name="c4", says="English web of April 2019, cleaned", licence="ODC-BY 1.0",
           hub="allenai/c4", files=("en/c4-train.*.json.gz",), about=305),
    Corpus(name="c4-realnewslike", says="the part of C4 from news sites", licence="ODC-BY 1.0",
           hub="allenai/c4", files=("realnewslike/c4-train.*.json.gz",), about=15),
    Corpus(name="fineweb-10bt", says="10 billion tokens of FineWeb", licence="ODC-BY 1.0",
           hub="HuggingFaceFW/fineweb", files=("sample/10BT/*.parquet",)),
    Corpus(name="fineweb-edu-10bt", says="10 billion tokens of FineWeb-Edu", licence="ODC-BY 1.0",
           hub="HuggingFaceFW/fineweb-edu", files=("sample/10BT/*.parquet",)),
    Corpus(name="slimpajama-6b", says="6 billion tokens of SlimPajama", licence="mixed",
           hub="DKYoon/SlimPajama-6B", files=("data/train-*.parquet",)),
    Corpus(name="redpajama-sample", says="a billion tokens of RedPajama 1", licence="mixed",
           hub="togethercomputer/RedPajama-Data-1T-Sample", files=("*.jsonl",)),
    Corpus(name="the-stack-smol", says="code in 30 languages; its makers ask for consent first", licence="mixed",
           hub="bigcode/the-stack-smol", files=("data/*/data.json",), key="content"),
)  # fmt: skip

_CLOSED = "the server that gpt-neox fetched it from is gone"
GONE: dict[str, tuple[str, str]] = {
    "books3": ("it was withdrawn in 2023 for breach of copyright", "take project-gutenberg"),
    "books1": (_CLOSED, "take project-gutenberg"),
    "enron": (_CLOSED, "take pile, which has it among the others"),
    "pile_subset": (_CLOSED, "take pile with --max-bytes"),
    "github": (_CLOSED, "take the-stack-smol or github-archive"),
    "arxiv": (_CLOSED, "take proof-pile-2-arxiv or arxiv-papers"),
    "europarl": (_CLOSED, "take pile, which has it among the others"),
    "freelaw": (_CLOSED, "take caselaw-access-project"),
    "nih": (_CLOSED, "take pile, which has it among the others"),
    "hackernews": (_CLOSED, "take pile, which has it among the others"),
    "openwebtext2": (_CLOSED, "take openwebtext or fineweb-10bt"),
    "ubuntu_irc": (_CLOSED, "take ubuntu-irc, which is another collection"),
    "youtube_subtitles": ("it was withdrawn for breach of copyright", "take another"),
    "c4_openwebtext": ("it is two corpora", "take c4 and openwebtext"),
}
"""Names that gpt-neox's prepare_data.py knows and nothing can be fetched for: why, and what to take."""


def corpus(name: str) -> Corpus:
    """The corpus of a name. Raises DataError when there is none, or it is gone."""
    if name in GONE:
        raise DataError(f"{name}: {GONE[name][0]}", GONE[name][1])
    found = next((each for each in CORPORA if each.name == name), None)
    if found is None:
        raise DataError(f"no corpus is named {name}", "see `neoxkit data get --list`")
    return found
