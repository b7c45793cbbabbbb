#!/usr/bin/env python3
"""Plain text for recipes/lm-s out of Debian packages: train.txt, test.txt, calib.txt, SOURCES.json in a folder.

usage: prepare.py OUT_FOLDER        (a Debian system with apt-get and dpkg; nothing is installed)

Files are held out whole: every 20th (by the hash of its name) belongs to test.txt. calib.txt is cut from the training
part. Hashes of the packages and texts are recorded; the same packages give the same texts.
"""
import hashlib
import html
import html.parser
import gzip
import json
import pathlib
import re
import subprocess
import sys

# Package, what its text may be used under, and which of its files are prose.
PACKAGES = [
    ("debian-reference-en", "GPL-2+", r"\.html$"),
    ("debian-handbook", "CC-BY-SA-3.0+ or GPL-2+", r"en-US/.*\.html$"),
    ("debian-faq", "GPL-2+", r"\.en\.html$"),
    ("maint-guide", "GPL-2+", r"\.en\.html$"),
    ("developers-reference", "GPL-2+", r"developers-reference/[^/]*\.html$"),
    ("debian-policy", "GPL-2+", r"policy\.html/.*\.html$"),
    ("python3.11-doc", "PSF-2", r"html/(tutorial|howto|faq|using|library|extending|reference)/.*\.html$"),
    ("linux-doc-6.1", "GPL-2", r"html/(admin-guide|process|core-api|filesystems|networking|driver-api|userspace-api|sound"
     r"|virt|trace|scsi|dev-tools|x86|mm|input|RCU|bpf|power|usb|security|PCI|locking|block|scheduler)/.*\.html$"),
    ("postgresql-doc-15", "PostgreSQL", r"html/[^/]*\.html$"),
    ("apache2-doc", "Apache-2.0", r"manual/en/.*\.html$"),
    ("libreoffice-help-en-us", "MPL-2.0", r"en-US/text/.*\.html$"),
    ("git-doc", "GPL-2", r"git-doc/.*\.html$"),
    ("octave-doc", "GPL-3+", r"octave\.html/[^/]*\.html$"),
    ("sqlite3-doc", "public domain", r"sqlite3/[^/]*\.html$"),
    ("perl-doc", "GPL-1+ or Artistic", r"pod/[^/]*\.pod$"),
    ("aptitude-doc-en", "GPL-2+", r"html/en/[^/]*\.html$"),
    ("python-django-doc", "BSD-3-clause", r"html/(ref|topics|howto|intro|faq|releases|internals)/.*\.html$"),
    ("vim-doc", "Vim", r"vim/html/[^/]*\.html$"),
    ("exim4-doc-html", "GPL-2+", r"spec_html/[^/]*\.html$"),
    ("libvirt-doc", "LGPL-2.1+", r"libvirt-doc/html/([^/]*|kbase/.*|manpages/.*)\.html$"),
    ("bind9-doc", "MPL-2.0", r"arm/[^/]*\.html$"),
    ("sphinx-doc", "BSD-2-clause", r"html/(usage|extdev|development|man|internals)/.*\.html$"),
    ("installation-guide-amd64", "GPL-2+", r"amd64/en/.*\.html$"),
    ("r-doc-html", "GPL-2+", r"manual/[^/]*\.html$"),
    ("openvswitch-doc", "Apache-2.0", r"html/(topics|tutorials|howto|faq|intro|internals)/.*\.html$"),
    ("nodejs-doc", "MIT", r"api/[^/]*\.html$"),
    ("rust-doc", "MIT or Apache-2.0",
     r"html/(book|reference|nomicon|rust-by-example|cargo|rustc|rustdoc|edition-guide)/.*\.html$"),
]
HELD_OUT = 200_000
CALIBRATION = 400_000


class Text(html.parser.HTMLParser):
    """Text of a page: paragraphs by blank lines; scripts, navigation and heads left out."""
    SKIP = {"script", "style", "head", "nav", "footer", "title"}
    FURNITURE = {"related", "sphinxsidebar", "footer", "navheader", "navfooter", "toc"}
    BLOCK = {"p", "div", "li", "h1", "h2", "h3", "h4", "h5", "tr", "dt", "dd", "pre", "table", "ul", "ol", "section"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.skip, self.skip_tag, self.pre = [], 0, "", 0

    def handle_starttag(self, tag, attrs):
        classes = dict(attrs).get("class") or ""
        if self.skip:
            self.skip += tag == self.skip_tag  # one of the same kind inside: its end is not the end
        elif tag in self.SKIP or (tag == "div" and self.FURNITURE & set(classes.split())):
            self.skip, self.skip_tag = 1, tag
        if tag == "br":
            self.parts.append("\n")
        if tag in self.BLOCK:
            self.parts.append("\n\n" if tag != "li" else "\n")
        self.pre += tag == "pre"
        if tag == "a" and "headerlink" in classes:
            self.parts.append("\0")  # the "¶" that follows is dropped below

    def handle_endtag(self, tag):
        if self.skip and tag == self.skip_tag:
            self.skip -= 1
            self.skip_tag = self.skip_tag if self.skip else ""
        if tag in self.BLOCK:
            self.parts.append("\n\n" if tag != "li" else "\n")
        self.pre -= tag == "pre" and self.pre > 0

    def handle_data(self, data):
        if not self.skip:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))

    def text(self):
        out = "".join(self.parts).replace("\0¶", "").replace("\0", "").replace("\xa0", " ")
        out = "\n".join(line.rstrip() for line in out.split("\n"))
        return re.sub(r"\n{3,}", "\n\n", out).strip()


def text_of(path):
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    raw = data.decode("utf-8", errors="ignore").replace("\r\n", "\n")
    if ".html" not in path.name:
        return re.sub(r"\n{3,}", "\n\n", raw).strip()
    page = Text()
    page.feed(raw)
    return page.text()


def fetch(work):
    """The .deb of each package that this system's sources have."""
    debs = work / "debs"
    debs.mkdir(parents=True, exist_ok=True)
    for name, *_ in PACKAGES:
        if not list(debs.glob(f"{name}_*.deb")):
            if subprocess.run(["apt-get", "download", name], cwd=debs).returncode:
                sys.exit(f"apt-get could not download {name}; run `apt-get update` first")
    return debs


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = pathlib.Path(sys.argv[1])
    debs = fetch(out)
    sources, train, test, seen = [], [], [], set()
    for name, licence, pattern in PACKAGES:
        [deb] = debs.glob(f"{name}_*.deb")
        root = out / "files" / name
        if not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["dpkg", "-x", deb, root], check=True)
        count, size = 0, 0
        for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
            relative = str(path.relative_to(root))
            if not re.search(pattern, relative):
                continue
            text = text_of(path)
            digest = hashlib.sha256(text.encode()).hexdigest()
            if len(text) < 500 or digest in seen:
                continue
            seen.add(digest)
            key = hashlib.sha256(f"{name}/{relative}".encode()).digest()
            (test if key[0] % 20 == 0 else train).append((key, text))
            count, size = count + 1, size + len(text.encode())
        sources.append({"package": deb.name, "sha256": hashlib.sha256(deb.read_bytes()).hexdigest(), "licence": licence,
                        "files": count, "bytes": size})
    train.sort()  # an order by hash: mixed, and the same everywhere
    test.sort()

    def part(texts, limit):
        return "\n\n".join(t for _, t in texts)[:limit].rsplit("\n\n", 1)[0] + "\n"

    # Passages of every eighth training file and of every held-out file, so that all packages are in.
    files = {"train.txt": "\n\n".join(t for _, t in train) + "\n",
             "calib.txt": part([(k, t[:2500].rsplit("\n", 1)[0]) for k, t in train[::8]], CALIBRATION),
             "test.txt": part([(k, t[:6000].rsplit("\n", 1)[0]) for k, t in test], HELD_OUT)}
    for name, text in files.items():
        (out / name).write_text(text)
    report = {"packages": sources, "texts": {n: {"bytes": len(t.encode()), "sha256": hashlib.sha256(t.encode()).hexdigest()}
                                             for n, t in files.items()}}
    (out / "SOURCES.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
