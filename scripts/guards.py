#!/usr/bin/env python3
"""What the design promises of the tree as a whole (docs/design.md): layers, no libtorch where it does not belong,
public headers, methods complete, small files, no loose ends. Prints what is wrong and exits 1.

    scripts/guards.py [--root DIR] [--build DIR]     with --build also looks at the programs' shared objects
"""
import argparse
import re
import subprocess
import sys
from pathlib import Path

TORCH_FREE = "base formats represent kernels entropy measure plan runtime".split()
TENSORS = "tensor maths nets train engine".split()
LAYERS = TORCH_FREE + TENSORS + ["cli"]
SOURCE = {".h", ".hpp", ".cpp", ".cc", ".cu", ".inc"}
STANDARD = set("""algorithm any array atomic bit bitset charconv chrono cmath compare complex concepts condition_variable
coroutine cstddef cstdint cstdio cstdlib cstring ctime deque exception filesystem forward_list fstream functional future
initializer_list iomanip ios iosfwd iostream istream iterator limits list locale map memory memory_resource mutex numbers
numeric optional ostream queue random ranges ratio regex set shared_mutex source_location span sstream stack stdexcept
string string_view system_error thread tuple type_traits typeindex typeinfo unordered_map unordered_set utility valarray
variant vector version""".split())
MAX_FILE, MAX_TESTDATA = 4 << 20, 60 << 20


def includes(path):
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        found = re.match(r'\s*#\s*include\s+[<"]([^">]+)[">]', line)
        if found:
            yield number, found.group(1)


def is_torch(name):
    return re.match(r"(torch|ATen|c10|caffe2)/", name) is not None


def tracked(root):
    out = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], stdout=subprocess.PIPE, check=False)
    if out.returncode == 0 and out.stdout:
        return [root / p for p in out.stdout.decode().split("\0") if p and (root / p).is_file()]
    return [p for p in root.rglob("*") if p.is_file() and not {"build", ".git", ".venv"} & set(p.relative_to(root).parts)]


def check_includes(root, files):
    for path in files:
        parts = path.relative_to(root).parts
        if path.suffix not in SOURCE:
            continue
        for number, name in includes(path):
            where = f"{path.relative_to(root)}:{number}"
            if name == "torch/torch.h":
                yield f"{where}: torch/torch.h costs 20 s a file; include tensor/tensor.h"
            if parts[0] == "include":
                if name not in STANDARD and not name.startswith("pith/"):
                    yield f"{where}: a public header includes <{name}>; only the standard library and pith/ may be"
                continue
            target = name.split("/")[0] if "/" in name else ""
            if parts[0] == "src" and len(parts) > 2:
                layer = parts[1]
                if layer not in LAYERS:
                    yield f"{where}: src/{layer} is no layer of the design"
                    continue
                if layer in TORCH_FREE and is_torch(name):
                    yield f"{where}: torch-free layer {layer} includes {name}"
                if target in LAYERS and LAYERS.index(target) > LAYERS.index(layer):
                    yield f"{where}: layer {layer} includes {name}, which belongs to a later layer"
                if layer in TENSORS and layer != "tensor" and is_torch(name):
                    yield f"{where}: includes {name}; src/tensor/tensor.h is the only door to libtorch"
            elif parts[0] == "methods" and len(parts) > 3:
                head = not re.search(r"_(fit|claim|test)\.cpp$", path.name)
                if head and (is_torch(name) or target in TENSORS):
                    yield f"{where}: the torch-free half of a method includes {name}"
                if target == "cli":
                    yield f"{where}: a method includes {name}"
                if name.startswith("methods/") and not name.startswith("/".join(parts[:3])):
                    yield f"{where}: a method includes another method: {name}"


def check_quiet(root, files):
    """The torch-free library prints nothing, throws nothing, exits never (std::abort marks bugs of the caller)."""
    for path in files:
        parts = path.relative_to(root).parts
        if parts[0] != "src" or path.suffix not in SOURCE or parts[1] not in TORCH_FREE:
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            code = re.sub(r'"(?:[^"\\]|\\.)*"', '""', line.split("//")[0])
            if re.search(r"std::c(out|err)\b|\bf?printf\s*\(|\b(std::)?exit\s*\(|\bthrow\b", code):
                yield f"{path.relative_to(root)}:{number}: the torch-free library does not print, throw or exit: {line.strip()}"


def check_words(root, files):
    for path in files:
        parts = path.relative_to(root).parts
        if path.suffix not in SOURCE | {".py", ".sh", ".cmake"} or path.name in ("guards.py", "guards_test.py") \
                or parts[0] in ("testdata", "data"):
            continue
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
                yield f"{path.relative_to(root)}:{number}: a loose end: {line.strip()[:100]}"


def known_gaps(root):
    """Files of methods that are known to be missing, one path a line: a list that only gets shorter."""
    path = root / "scripts/known_gaps.txt"
    return set(path.read_text().split()) if path.exists() else set()


def check_methods(root, files):
    folders = sorted({root.joinpath(*p.relative_to(root).parts[:3]) for p in files
                      if p.relative_to(root).parts[0] == "methods" and len(p.relative_to(root).parts) > 3})
    seen = {}
    for folder in folders:
        name, stem = folder.name, folder.name.replace("-", "_")
        if name in seen:
            yield f"{folder.relative_to(root)}: the name {name} is used twice (also {seen[name]})"
        seen[name] = folder.relative_to(root)
        here = {p.name for p in files if p.parent == folder}
        head = folder / f"{stem}.cpp"
        if head.name not in here:
            yield f"{folder.relative_to(root)}: no {head.name}"
            continue
        baseline = re.search(r"\.baseline\s*=\s*true", head.read_text(errors="replace")) is not None
        wanted = [f"{stem}_test.cpp"] + ([] if baseline else [f"{stem}_claim.cpp", f"{stem}_claim.csv"])
        gaps = known_gaps(root)
        for file in wanted:
            path = str(folder.relative_to(root) / file)
            if file not in here and path not in gaps:
                yield f"{path}: missing"
            elif file in here and path in gaps:
                yield f"{path}: is there now; take it out of scripts/known_gaps.txt"


def check_sizes(root, files):
    total = 0
    for path in files:
        size = path.stat().st_size
        if size > MAX_FILE:
            yield f"{path.relative_to(root)}: {size} bytes; at most {MAX_FILE} may be committed"
        if path.relative_to(root).parts[0] == "testdata":
            total += size
    if total > MAX_TESTDATA:
        yield f"testdata: {total} bytes; at most {MAX_TESTDATA}"


def check_readmes(root, files):
    tops = {p.relative_to(root).parts[0] for p in files if len(p.relative_to(root).parts) > 1} - {".ci"}
    layers = {p.relative_to(root).parts[1] for p in files if p.relative_to(root).parts[0] == "src" and len(p.relative_to(root).parts) > 2}
    for folder in sorted(tops) + [f"src/{layer}" for layer in sorted(layers)]:
        if not (root / folder / "README.md").exists():
            yield f"{folder}: no README.md (what lives here, what may not)"


def check_programs(build):
    for name in ("pith", "tests/pith_tests"):
        program = build / name
        if not program.exists():
            continue
        out = subprocess.run(["readelf", "-d", str(program)], stdout=subprocess.PIPE, text=True, check=True).stdout
        for library in re.findall(r"NEEDED.*\[(.*?)\]", out):
            if re.match(r"lib(torch|c10|cuda|cudart)", library):
                yield f"{program}: links {library}; the torch-free side must not"


def problems(root, build=None):
    files = tracked(root)
    out = []
    for check in (check_includes, check_quiet, check_words, check_methods, check_sizes, check_readmes):
        out += check(root, files)
    if build:
        out += check_programs(build)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--build", type=Path)
    args = parser.parse_args()
    found = problems(args.root.resolve(), args.build)
    for line in found:
        print(line)
    print(f"guards: {len(found)} problem(s)")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
