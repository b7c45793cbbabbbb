"""Small tokenizers of every family that Pith runs, trained with the packages `tokenizers` and `sentencepiece`.

`train(folder, lines, size)` writes NAME.json (tokenizer.json) for each and returns the names; sentencepiece models come
as NAME.model too. Everything is deterministic.
"""
import json
import pathlib

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
          r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
          r"\s+(?!\S)|\s+")
HAN = (r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
       r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*|\p{N}{1,3}"
       r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level(lines, size, pre, normalizer=None, ignore_merges=False, added=(), bos=False):
    t = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if normalizer:
        t.normalizer = normalizer
    t.train_from_iterator(lines, trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    t.add_tokens(list(added))
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=[
            ("<|im_start|>", 1), ("<|im_end|>", 2)])
    return json.loads(t.to_str())


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def spm_like(lines, size, normalizer, pre, decoder):
    """Merges trained on words, then used with another normaliser and pre-tokenizer, as converted models are."""
    t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    t.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, limit_alphabet=300, show_progress=False,
                                                     special_tokens=["<unk>", "<s>", "</s>", *byte_tokens]))
    out = json.loads(t.to_str())
    out["added_tokens"] = [a for a in out["added_tokens"] if not a["content"].startswith("<0x")]
    out["normalizer"] = json.loads(normalizer.__getstate__()) if normalizer else None
    out["pre_tokenizer"] = json.loads(pre.__getstate__()) if pre else None
    out["decoder"] = json.loads(decoder.__getstate__())
    return out


def strip_decoder(count):
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] +
                             ([decoders.Strip(" ", 1, 0)] if count else []))


def sentencepiece_as_json(model):
    """tokenizer.json of a sentencepiece model, with sentencepiece's own treatment of white space."""
    m = sentencepiece_model_pb2.ModelProto()
    m.ParseFromString(model)
    unigram = m.trainer_spec.model_type == 1
    if unigram:
        t = Tokenizer(models.Unigram([(p.piece, p.score) for p in m.pieces], unk_id=0,
                                     byte_fallback=m.trainer_spec.byte_fallback))
    else:
        vocab = {p.piece: i for i, p in enumerate(m.pieces)}
        merges = []
        for p in m.pieces:
            for k in range(1, len(p.piece)):
                if p.type == 1 and p.piece[:k] in vocab and p.piece[k:] in vocab:
                    merges.append((-p.score, vocab[p.piece[:k]], vocab[p.piece[k:]], p.piece[:k], p.piece[k:]))
        t = Tokenizer(models.BPE(vocab=vocab, merges=[(a, b) for *_, a, b in sorted(merges)], unk_token="<unk>",
                                 fuse_unk=True, byte_fallback=m.trainer_spec.byte_fallback))
    steps = []
    if m.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(m.normalizer_spec.precompiled_charsmap))
    steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " "),
              normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    t.normalizer = normalizers.Sequence(steps)
    t.decoder = strip_decoder(1)
    t.add_special_tokens([AddedToken(x, normalized=False, special=True) for x in ("<unk>", "<s>", "</s>")])
    return json.loads(t.to_str())


def train(folder, text, size):
    folder = pathlib.Path(folder)
    lines = text.split("\n")
    gpt2, digits = pre_tokenizers.ByteLevel(add_prefix_space=False), pre_tokenizers.Digits(individual_digits=True)
    zoo = {
        "gpt2": byte_level(lines, size, gpt2),
        "gpt2_prefix": byte_level(lines, size, pre_tokenizers.ByteLevel(add_prefix_space=True)),
        "smollm": byte_level(lines, size, pre_tokenizers.Sequence([digits, gpt2]), bos=True),
        "llama3": byte_level(lines, size, split(LLAMA3), ignore_merges=True),
        "qwen2": byte_level(lines, size, split(QWEN2), normalizers.NFC()),
        "tekken": byte_level(lines, size, split(TEKKEN)),
        "han": byte_level(lines, size, split(HAN)),
        "nfkc_lower": byte_level(lines, size, gpt2, normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])),
        "nfkd": byte_level(lines, size, gpt2, normalizers.NFKD()),
        "added": byte_level(lines, size, split(QWEN2), normalizers.NFC(), added=[
            AddedToken("<tool>", lstrip=True), AddedToken("<zo\u0308>", normalized=True), AddedToken("the", single_word=True),
            AddedToken("<s>", rstrip=True, lstrip=True, normalized=False)]),
        "llama2": spm_like(lines, size, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]),
                           None, strip_decoder(1)),
        "gemma": spm_like(lines, size, normalizers.Replace(" ", "▁"), pre_tokenizers.Split(" ", "merged_with_previous"),
                          strip_decoder(0)),
        "mistral": spm_like(lines, size, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
                            strip_decoder(1)),
    }
    # A small character map in place of nmt_nfkc, whose compiled form is 240 kB.
    rules = [([0xFF21 + i], [0x41 + i]) for i in range(26)] + [([0x65, 0x301], [0xE9]), ([0xFB01], [0x66, 0x69]),
             ([0x3000], [0x20]), ([0x0A], [0x20]), ([0x09], [0x20]), ([0x0D], [0x20]), ([0x200B], []), ([0x2460], [0x31])]
    tsv = folder / "rules.tsv"
    tsv.write_text("".join(" ".join(f"{c:X}" for c in a) + "\t" + " ".join(f"{c:X}" for c in b) + "\n" for a, b in rules))
    (folder / "spm.txt").write_text(text)
    for kind in ("unigram", "bpe"):
        for normaliser, suffix in (({"normalization_rule_tsv": str(tsv)}, ""), ({}, "_nfkc")):
            name = f"spm_{kind}{suffix}"
            sentencepiece.SentencePieceTrainer.train(
                input=str(folder / "spm.txt"), model_prefix=str(folder / name), vocab_size=size, model_type=kind,
                byte_fallback=kind == "bpe", character_coverage=0.98, max_sentence_length=100000, num_threads=1,
                hard_vocab_limit=False, minloglevel=2, **normaliser)
            zoo[name] = sentencepiece_as_json((folder / f"{name}.model").read_bytes())
    for name, data in zoo.items():
        (folder / f"{name}.json").write_text(json.dumps(data, ensure_ascii=False))
    return list(zoo)
