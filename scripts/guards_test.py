#!/usr/bin/env python3
"""Each guard finds what it is there for, and a clean tree passes."""
import tempfile
import unittest
from pathlib import Path

import guards


class Guards(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        self.write("src/README.md", "x")
        for layer in ("base", "runtime", "engine"):
            self.write(f"src/{layer}/README.md", "x")

    def tearDown(self):
        self.folder.cleanup()

    def write(self, path, text):
        full = self.root / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_text(text)

    def expect(self, *words):
        found = guards.problems(self.root)
        self.assertEqual(len(found), 1, found)
        for word in words:
            self.assertIn(word, found[0])

    def test_clean(self):
        self.write("src/base/a.h", "#include <vector>\n")
        self.write("src/runtime/b.h", '#include "base/a.h"\n')
        self.assertEqual(guards.problems(self.root), [])

    def test_later_layer(self):
        self.write("src/base/a.h", '#include "runtime/b.h"\n')
        self.expect("src/base/a.h:1", "later layer")

    def test_torch_in_torch_free(self):
        self.write("src/base/a.h", "#include <ATen/core/Tensor.h>\n")
        self.expect("torch-free layer base")

    def test_torch_h(self):
        self.write("src/engine/a.cpp", '#include "torch/torch.h"\n')
        self.assertTrue(any("costs 20 s" in p for p in guards.problems(self.root)))

    def test_public_header(self):
        self.write("include/README.md", "x")
        self.write("include/pith/a.h", "#include <fmt/format.h>\n")
        self.expect("public header", "fmt/format.h")

    def test_printing(self):
        self.write("src/base/a.cpp", 'void f() { std::cout << "x"; }\n')
        self.expect("does not print")

    def test_words_about_throwing_are_fine(self):
        self.write("src/base/a.cpp", '// never throws\nconst char* s = "throw";\n')
        self.assertEqual(guards.problems(self.root), [])

    def test_loose_end(self):
        self.write("src/base/a.cpp", "// TODO later\n")
        self.expect("loose end")

    def test_method_files(self):
        self.write("methods/README.md", "x")
        self.write("methods/quantize/x-y/x_y.cpp", "const Method m{};\n")
        self.write("methods/quantize/x-y/x_y_test.cpp", "")
        self.write("methods/quantize/x-y/x_y_claim.cpp", "")
        self.expect("x_y_claim.csv")

    def test_known_gaps(self):
        self.write("scripts/README.md", "x")
        self.write("scripts/known_gaps.txt", "methods/quantize/z/z_test.cpp\n")
        self.write("methods/README.md", "x")
        self.write("methods/quantize/z/z.cpp", "const Method m{.baseline = true};\n")
        self.assertEqual(guards.problems(self.root), [])
        self.write("methods/quantize/z/z_test.cpp", "")
        self.expect("is there now")

    def test_baseline_needs_no_claim(self):
        self.write("methods/README.md", "x")
        self.write("methods/quantize/z/z.cpp", "const Method m{.baseline = true};\n")
        self.write("methods/quantize/z/z_test.cpp", "")
        self.assertEqual(guards.problems(self.root), [])

    def test_big_file(self):
        self.write("src/base/big.txt", "x" * (guards.MAX_FILE + 1))
        self.expect("big.txt", "bytes")

    def test_readme(self):
        self.write("src/plan/a.h", "")
        self.expect("src/plan", "README")


if __name__ == "__main__":
    unittest.main()
