"""Deterministic text that is hard on tokenizers: prose in many languages, code, emoji, combining marks, controls.

`mixed_text(size, seed, prose)` gives a str of about `size` bytes; `broken(data, seed)` puts broken UTF-8 into it.
"""
import pathlib
import random
import unicodedata

SENTENCES = [
    "The quick brown fox jumps over the lazy dog; it's 12:45 and they've already left, haven't they?",
    "I'LL say it: WE'RE DONE. Don’t “quote” me — it costs $1,234.56 (or 99%), #hashtag @user, e-mail: a.b+c@d-e.org.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, Maß, Füße.",
    "Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis. L'été dernier, c'était différent !",
    "El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; ¿añoraba a su querido cachorro? ¡Sí!",
    "Pchnąć w tę łódź jeża lub ośm skrzyń fig. Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. В чащах юга жил бы цитрус? Да, но фальшивый экземпляр!",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Τάχιστη αλώπηξ βαφής ψημένη γη, δρασκελίζει υπέρ νωθρού κυνός.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה. שָׁלוֹם עֲלֵיכֶם",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق. السَّلَامُ عَلَيْكُمْ",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार भगवान श्रीराम।",
    "আমি বাংলায় গান গাই। যாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน ๑๒๓๔",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ。東京都では、カタカナとｶﾀｶﾅと１２３を使います！",
    "我能吞下玻璃而不伤身体。人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，並應以兄弟關係的精神相對待。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. 다람쥐 헌 쳇바퀴에 타고파",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ısı Iğdır'dan ılık.",
    "Tiếng Việt có nhiều dấu: ắ ằ ẳ ẵ ặ, ở nước ta người dân rất hiếu khách.",
    "ღმერთსი ვჰკითხავ, ვენაცვა. Զոյգ մեծ քաղաքներ: ሰላም ለዓለም ᚠᛇᚻ᛫ᛒᛦᚦ",
    "😀😃 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇯🇵 ❤️ ✌🏿 🤷‍♂️ 1️⃣ ©️ 🧑🏻‍🚀🚀",
    "e\u0301 a\u0300\u0316 o\u0308\u0304 n\u0303 Z\u0351\u036b\u0343a\u0337\u0321l\u0335g\u034fo\u0489 \u1100\u1161\u11a8 A\u030a = \u00c5 = \u212b",
    "ﬁne ﬂow ½ ¾ ² ³ № ℃ ㎏ Ⅷ ⅷ ① ㊙ ｆｕｌｌ　ｗｉｄｔｈ ＡＢＣ",
    "x² + y³ ≈ ∑ᵢ αᵢ·√(βᵢ) ∈ ℝⁿ → ∞; ∀x∃y: x ≤ y ∧ ¬(y < x) ⇔ ⊤",
]
CODE = [
    "def f(x, *args, **kw):\n    return {k: v**2 for k, v in kw.items() if k != '_'}  # 3.14e-10\n\n\n",
    "#include <vector>\nint main(int argc, char** argv) {\n\tstd::vector<int> v{1,2,3};\n\tfor (auto& e : v) { e <<= 2; }\n\treturn v[0] != 0x1F ? 0 : -1;\n}\n",
    "SELECT a.id, COUNT(*) FROM t1 AS a LEFT JOIN t2 b ON a.id=b.id WHERE b.x IS NOT NULL GROUP BY 1 HAVING COUNT(*)>10;\r\n",
    "<div class=\"x-y\" id='z'>&nbsp;&lt;b&gt;</div>\n<!-- comment -->\n{\"key\": [1, 2.50, -3e+7, null, true], \"ü\": \"\\u00fc\\n\"}\n",
    "for i in $(seq 1 100); do echo \"$i: ${arr[$i]}\" >> /tmp/out_$$.log 2>&1 || exit 1; done\n",
    "\t\t\tif (!ok)\n\t\t\t\tgoto fail;   \n        \n    \n\n\n   x = 100000000 + 12345678901234567890;\n",
]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<|begin_of_text|>", "<|eot_id|>",
            "[INST]", "<0x0A>", "▁", "<start_of_turn>", "<pad>", "Ġ", "Ċ", "  <tool> ", "<zo\u0308>", "<z\u00f6>", "the"]


def _characters(rng, count):
    """Characters of every category, as old as Unicode 3.2, so that all peers know them."""
    out = []
    while len(out) < count:
        plane = rng.choice([0x300, 0x3000, 0x10000, 0x20000])
        c = chr(rng.randrange(plane))
        if unicodedata.ucd_3_2_0.category(c) not in ("Cn", "Cs", "Co"):
            out.append(c)
    return "".join(out)


def mixed_text(size, seed=1, prose="", specials=True):
    rng = random.Random(seed)
    spaces = [" "] * 12 + ["\n", "\n\n", "  ", "   ", "\t", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u2003 ", "\x0b",
                           "\u2028", " " * 17, "\n" * 5, "\u200b", "\u200d", "\ufeff", "\x85"]
    pieces, total = [], 0
    paragraphs = [p for p in prose.split("\n") if p.strip()]
    while total < size:
        kind = rng.random()
        if paragraphs and kind < 0.45:
            p = rng.choice(paragraphs)[:600]
        elif kind < 0.70:
            p = rng.choice(SENTENCES)
            if rng.random() < 0.3:
                words = p.split(" ")
                rng.shuffle(words)
                p = " ".join(words)
        elif kind < 0.82:
            p = rng.choice(CODE)
        elif kind < 0.88:
            p = _characters(rng, rng.randrange(1, 40))
        elif kind < 0.91:
            p = "".join(chr(rng.randrange(1, 128)) for _ in range(rng.randrange(1, 30)))
        elif kind < 0.93 and specials:
            p = rng.choice(SPECIALS)
        elif kind < 0.95:
            p = str(rng.randrange(10 ** rng.randrange(1, 22)))
        elif kind < 0.97:
            p = rng.choice("aAe=-_*#.0 é字😀\n") * rng.randrange(1, 120)
        else:
            p = rng.choice(SENTENCES).swapcase()[: rng.randrange(1, 60)]
        pieces.append(p + rng.choice(spaces))
        total += len(pieces[-1].encode())
    return "".join(pieces)


def broken(data, seed=1, rate=0.002):
    """`data` with some bytes replaced or put in, so that the UTF-8 breaks.

    Only bytes that nobody takes for a part of a character: llama.cpp reads overlong forms and surrogates as characters.
    """
    rng = random.Random(seed)
    out = bytearray()
    for i, b in enumerate(data):
        r = rng.random()
        alone = b < 0x80 and (i == 0 or data[i - 1] < 0x80)  # a continuation byte here continues nothing
        bad = rng.choice([0x80, 0x9F, 0xBF, 0xF9, 0xFF] if alone else [0xF9, 0xFE, 0xFF])
        if r < rate:
            out.append(bad)
        elif r < 1.5 * rate:
            out += bytes([b, bad])
        else:
            out.append(b)
    return bytes(out)


if __name__ == "__main__":
    import sys
    text = pathlib.Path(sys.argv[3]).read_text() if len(sys.argv) > 3 else ""
    sys.stdout.buffer.write(mixed_text(int(sys.argv[1]), int(sys.argv[2]), text).encode())
