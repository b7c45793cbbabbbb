"""Seeds that other people's writers make: GGUF of every type and value, safetensors, tokenizer.json of each kind.
Run with the peers' Python (.venv-peers). make_corpus.py makes the hand-laid ones, tests/formats/fuzz_seeds_test.cpp those
that need Pith's own writers."""
import json
import pathlib
import sys

import gguf
import safetensors.numpy
import tokenizers

HERE = pathlib.Path(__file__).parent / "corpus"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/peers"))
import formats_peers_test as peers  # noqa: E402


def folder(name):
    (HERE / name).mkdir(parents=True, exist_ok=True)
    return HERE / name


peers.write_gguf(folder("gguf") / "all-types.gguf")
writer = gguf.GGUFWriter(folder("gguf") / "spm.gguf", "llama")
writer.add_tokenizer_model("llama"), writer.add_token_list(["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<0x41>"])
writer.add_token_scores([0, 0, 0, -1, -2, -3, 0]), writer.add_token_types([2, 3, 3, 1, 1, 1, 6])
writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()

safetensors.numpy.save_file(peers.some_tensors(), folder("safetensors") / "mixed.safetensors", metadata={"k": "v"})

for name, tokenizer in peers.trained_tokenizers().items():
    data = json.loads(tokenizer.to_str())
    model = data["model"]
    if name == "unigram":
        model["vocab"] = model["vocab"][:60]
    else:  # a smaller one reaches the same code
        keep = {k: v for k, v in model["vocab"].items() if v < 290}
        model["vocab"] = keep
        model["merges"] = [m for m in model["merges"] if "".join(m) in keep and m[0] in keep and m[1] in keep]
    (folder("tokenizer_json") / f"{name}.peer.json").write_text(json.dumps(data, ensure_ascii=False))
