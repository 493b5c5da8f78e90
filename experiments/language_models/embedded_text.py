"""Make the text that ships with the package: nine public-domain novels, as passages.

    pip install rdata
    python -m experiments.language_models.embedded_text

Fetches two Debian packages with `apt-get download` (r-cran-janeaustenr: six novels of Jane Austen;
r-cran-tidytext: Wells, Verne and Dickens), reads the R data in them, joins hard-wrapped lines to
paragraphs and paragraphs to passages of about 2,000 characters that do not cross a chapter, and
writes embedded/text/books.parquet. Persuasion and the last tenth of each book not by Austen are
held out. The result is the same every time.
"""

import re
import subprocess
import tempfile
import zlib
from pathlib import Path

import pandas as pd
import rdata  # pyright: ignore[reportMissingImports]

PACKAGES = ("r-cran-janeaustenr", "r-cran-tidytext")
TARGET = Path(__file__).parents[2] / "dictionary_learning_ext/embedded/text/books.parquet"
AUSTEN = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}
OTHERS = {
    "The War of the Worlds": "H. G. Wells",
    "Twenty Thousand Leagues under the Sea": "Jules Verne",
    "Great Expectations": "Charles Dickens",
}
HEADING = re.compile(
    r"(chapter|volume|book|part) [ivxlc\d]+\.?$|(chapter|book|part) [a-z-]+$", re.I
)
# Notes of editors, and rows of stars that mark a break: not text of the novels.
NOTES = (
    re.compile(r"\[(End volume|At this point in|Transcriber|Project Gutenberg)[^\]]*\]"),
    re.compile(r"\(End of volume one\.\)"),
    re.compile(r"(?<=cetacean\.)\[1\]|^\[1\] Member of the whale family\.$", re.MULTILINE),
    re.compile(r"(?<=declared,)\*|^\*Vide a letter from Mr\. Richardson.*$", re.MULTILINE),
    re.compile(r"^[ *]*\*[ *]*$", re.MULTILINE),
)
# Signs of an unclean text: any of them stops the build.
UNCLEAN = re.compile(r"gutenberg|transcriber|\betext|https?:|[_*\t\r]|  |[^\x20-\x7e\n£]", re.I)
PASSAGE_LENGTH = 2000  # characters
HELD_OUT_SHARE = 0.1


def fetch(folder: Path) -> Path:
    """Download and unpack the Debian packages; return R's library folder."""
    for package in PACKAGES:
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
    for archive in folder.glob("*.deb"):
        subprocess.run(["dpkg", "-x", archive, folder], check=True)
    return folder / "usr/lib/R/site-library"


def read_lazy_load(folder: Path) -> dict[str, list[str]]:
    """Character vectors from an R package's lazy-load database (an index and zlib'd values)."""
    index = rdata.read_rds(folder / "Rdata.rdx")["variables"]
    database = (folder / "Rdata.rdb").read_bytes()
    vectors = {}
    for name, (offset, length) in index.items():
        # Four bytes of uncompressed length precede each compressed value.
        value = zlib.decompress(database[int(offset) + 4 : int(offset) + int(length)])
        parsed = rdata.parser.parse_data(value, extension=".rds")
        vectors[str(name)] = [line or "" for line in rdata.conversion.convert(parsed)]
    return vectors


def read_books(library: Path) -> list[tuple[str, str, list[str]]]:
    """(book, author, lines) of every novel."""
    austen = read_lazy_load(library / "janeaustenr/data")
    books = [(title, "Jane Austen", austen[name]) for name, title in AUSTEN.items()]
    frame = rdata.read_rda(library / "tidytext/extdata/books.rda")["books"]
    for title, author in OTHERS.items():
        books.append((title, author, list(frame.loc[frame["title"] == title, "text"])))
    return books


def join_lines(block: str) -> str:
    """One paragraph from hard-wrapped lines; no space after a line that ends in a dash."""
    joined = ""
    for line in block.split("\n"):
        words = " ".join(line.replace("_", "").split())
        joined += words if not joined or joined.endswith("-") else " " + words
    return joined


def paragraphs(lines: list[str]) -> list[str]:
    """Paragraphs from the first heading to the end mark, unwrapped, without editors' notes."""
    text = "\n".join(line.rstrip() for line in lines)
    for note in NOTES:
        text = note.sub("", text)
    blocks = [block for block in map(join_lines, re.split(r"\n\s*\n", text)) if block]
    blocks = blocks[next(i for i, block in enumerate(blocks) if HEADING.match(block)) :]
    end = [
        i for i, b in enumerate(blocks) if b.upper() in ("FINIS", "THE END", "A NOTE ON THE TEXT")
    ]
    blocks = blocks[: min(end)] if end else blocks
    for block in blocks:
        if found := UNCLEAN.search(block):
            raise ValueError(f"{found.group()!r} in {block[:200]!r}")
    return blocks


def passages(blocks: list[str]) -> list[str]:
    """Whole paragraphs, up to PASSAGE_LENGTH characters together, never across a heading."""
    groups: list[list[str]] = [[]]
    for block in blocks:
        length = sum(len(member) + 2 for member in groups[-1])
        only_headings = all(HEADING.match(member) for member in groups[-1])
        is_full = length + len(block) > PASSAGE_LENGTH or HEADING.match(block)
        if is_full and not only_headings:
            groups.append([])
        groups[-1].append(block)
    return ["\n\n".join(group) for group in groups if group]


def main():
    with tempfile.TemporaryDirectory() as folder:
        books = read_books(fetch(Path(folder)))
    rows = []
    for book, author, lines in books:
        texts = passages(paragraphs(lines))
        total, read = sum(map(len, texts)), 0
        for text in texts:
            is_end = author != "Jane Austen" and read >= (1 - HELD_OUT_SHARE) * total
            split = "heldout" if book == "Persuasion" or is_end else "train"
            rows.append({"text": text, "book": book, "author": author, "split": split})
            read += len(text)
    frame = pd.DataFrame(rows)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(TARGET, compression="zstd", compression_level=19, index=False)
    frame["characters"] = frame["text"].str.len()
    table = frame.groupby(["author", "book", "split"], sort=False)["characters"]
    print(table.agg(passages="count", characters="sum"))
    print(f"{TARGET.name}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
