#!/usr/bin/env python3
"""method_docs.py PITH OUT: one page a method and an index, from `pith methods --json`."""
import json
import subprocess
import sys
from pathlib import Path


def cell(text):
    return str(text).replace("|", "\\|")


def page(method):
    lines = [f"# {method['name']}", "", method["title"] + ".", ""]
    lines += [f"Paper: {method['paper']}." if method["paper"] else "A baseline: the ordinary method that claims are measured against."
              if method["baseline"] else "Our own.", ""]
    if method["example"]:
        lines += ["    " + method["example"], ""]
    if method["params"]:
        lines += ["| option | values | default | what it does |", "|---|---|---|---|"]
        lines += [f"| `--{p['name']}` | {cell(p['values'])} | {cell(p['default'])} | {cell(p['help'])} |" for p in method["params"]]
        lines += [""]
    else:
        lines += ["No options.", ""]
    if method["budget_options"]:
        lines += [f"`pith compress` tries by itself: `{method['name']}:{method['budget_options']}`.", ""]
    return "\n".join(lines)


def main():
    program, out = sys.argv[1], Path(sys.argv[2])
    methods = json.loads(subprocess.run([program, "methods", "--json"], stdout=subprocess.PIPE, check=True).stdout)
    out.mkdir(parents=True, exist_ok=True)
    index = ["# Methods", "", "Written by `make docs` from the parameter tables; do not edit.", ""]
    family = None
    for method in methods:
        if method["family"] != family:
            family = method["family"]
            index += ([""] if index[-1] else []) + [f"## {family}", ""]
        index.append(f"- [{method['name']}]({method['name']}.md): {method['title']}")
        (out / f"{method['name']}.md").write_text(page(method))
    (out / "README.md").write_text("\n".join(index) + "\n")


if __name__ == "__main__":
    main()
