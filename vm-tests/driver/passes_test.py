import os
import tempfile
import unittest
from pathlib import Path

from driver import claims, passes


class PassesTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.path = Path(self._folder.name)
        self.claim_path = self.path / "it-holds.py"
        self.claim_path.write_text("pass\n")

    def passes(self, common="common"):
        return passes.Passes(self.path / "passes", common)

    def claim(self):
        return claims.load(self.claim_path)

    def test_a_pass_is_known_again_and_only_that(self):
        self.assertFalse(self.passes().has(self.claim()))
        self.passes().add(self.claim())
        self.assertTrue(self.passes().has(self.claim()))
        self.assertFalse(self.passes("another program").has(self.claim()))
        other = self.path / "it-breaks.py"
        other.write_text("pass\n")
        self.assertFalse(self.passes().has(claims.load(other)))

    def test_a_claim_that_was_changed_is_another(self):
        self.passes().add(self.claim())
        self.claim_path.write_text("assert True\n")
        self.assertFalse(self.passes().has(self.claim()))

    def test_a_document_matters_to_those_that_name_it_and_to_no_others(self):
        document = self.path / "README.md"
        document.write_text("one\n")

        def known():
            return passes.Passes(self.path / "passes", "common", named=[("test/README.md", document)])

        known().add(self.claim())
        document.write_text("two\n")
        self.assertTrue(known().has(self.claim()))
        self.claim_path.write_text("open('/opt/rundlet/test/README.md')\n")
        known().add(self.claim())
        self.assertTrue(known().has(self.claim()))
        document.write_text("three\n")
        self.assertFalse(known().has(self.claim()))

    def test_old_passes_go_and_used_ones_stay(self):
        self.passes().add(self.claim())
        (file,) = (self.path / "passes").glob("*.passed")
        os.utime(file, (0, 0))
        self.assertTrue(self.passes().has(self.claim()))
        self.passes().sweep()
        self.assertTrue(file.exists())
        os.utime(file, (0, 0))
        self.passes().sweep()
        self.assertFalse(file.exists())

    def test_the_hash_is_of_names_contents_and_words(self):
        file = self.path / "program"
        file.write_bytes(b"one")
        first = passes.hash_of([("bin/a", file)], ["tcg"])
        self.assertEqual(first, passes.hash_of([("bin/a", file)], ["tcg"]))
        self.assertNotEqual(first, passes.hash_of([("bin/b", file)], ["tcg"]))
        self.assertNotEqual(first, passes.hash_of([("bin/a", file)], ["kvm"]))
        file.write_bytes(b"two")
        os.utime(file, (0, 0))
        self.assertNotEqual(first, passes.hash_of([("bin/a", file)], ["tcg"]))


if __name__ == "__main__":
    unittest.main()
