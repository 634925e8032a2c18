from pathlib import Path

from workers.source_edits import EDITS, Edit, read_patch

PATCH = """Why, in words:

- with a list
--- a/one.cpp
+++ b/one.cpp
@@ -1,3 +1,4 @@
 first
-second
+2nd
+
 third
@@ -8,1 +9,2 @@
 last
+more
--- a/folder/two.cpp
+++ b/folder/two.cpp
@@ -1,1 +0,0 @@
-gone
"""


def test_a_hunk_of_a_patch_is_a_change() -> None:
    assert read_patch(PATCH) == (
        Edit("one.cpp", "first\nsecond\nthird\n", "first\n2nd\n\nthird\n"),
        Edit("one.cpp", "last\n", "last\nmore\n"),
        Edit("folder/two.cpp", "gone\n", ""),
    )


def test_the_patches_that_are_there_are_made() -> None:
    folder = Path(__file__).parents[2] / "workers"
    for path in folder.glob("*.patch"):
        assert set(read_patch(path.read_text(encoding="utf-8"))) <= set(EDITS)
        assert len(read_patch(path.read_text(encoding="utf-8"))) > 10
