"""`import pith` and `import torch` in one process, in both orders: neither disturbs the other."""
import os
import subprocess
import sys

import pytest

pytest.importorskip("pith", reason="the module in build/ is for another Python; run with PITH_PEERS=.venv's version")
SOURCE = os.environ["PITH_SOURCE_DIR"]

PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
{imports}
import pathlib, tempfile
import numpy as np
from conftest import make_model
folder = pathlib.Path(tempfile.mkdtemp()) / "tiny"
make_model(folder)
torch.manual_seed(0)
before = (torch.randn(64, 64) @ torch.randn(64, 64)).double().sum().item()
model = pith.open(str(folder))
ppl = pith.eval.perplexity(model, "A quick brown fox. " * 40, context=64, threads=2).ppl
text = pith.generate(model, "abc", chat=False, max_tokens=8).tokens
torch.manual_seed(0)
after = (torch.randn(64, 64) @ torch.randn(64, 64)).double().sum().item()
assert before == after
array = torch.from_numpy(model.tensors["model.norm.weight"].decode())
assert array.sum().item() == 64
try:
    pith.open("/no/such/file")
except pith.Error:
    pass
print(ppl, text)
"""


def run(imports):
    program = PROGRAM.format(tests=os.path.join(SOURCE, "python/tests"), imports=imports)
    done = subprocess.run([sys.executable, "-B", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torch_first_and_pith_first_give_the_same():
    assert run("import torch\nimport pith") == run("import pith\nimport torch")


def test_the_module_links_no_libtorch():
    import pith._pith
    out = subprocess.run(["readelf", "-d", pith._pith.__file__], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert "libtorch" not in out and "libc10" not in out
