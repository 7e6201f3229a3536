"""The one reader of Markdown and the one list of concepts: where does code end, what is a heading called?"""

from __future__ import annotations

import re

import pytest

from docs.tools import markdown
from docs.tools.concepts import CONCEPTS
from docs.tools.guides import ROOT

TEXT = """# One

```python
# not a heading <!-- and no comment -->
```

<!-- python
print("```")
# neither
-->
<!-- printed -->
## Two, *and* `x`: [a link](target.md)
<!-- /printed -->

````text
```
# nor this
````

## Two, and x: a link ##
"""


def test_headings_are_those_that_a_reader_sees():
    found = [(heading.line, heading.level, heading.title[:3]) for heading in markdown.headings(TEXT)]
    assert found == [(1, 1, "One"), (12, 2, "Two"), (20, 2, "Two")]


def test_anchors_are_those_of_github():
    assert markdown.anchors(TEXT) == ["one", "two-and-x-a-link", "two-and-x-a-link-1"]
    assert markdown.anchors("### 2.5 Why $x_t$ — and ÄÖ?") == ["25-why-x_t--and-äö"]


def test_comments_go_and_code_stays():
    text = markdown.without_comments(TEXT)
    assert "# not a heading <!-- and no comment -->" in text
    assert "# nor this" in text
    assert "neither" not in text
    assert "printed" not in text
    assert "## Two, *and*" in text


def test_a_change_is_made_outside_of_fences_only():
    assert markdown.outside_fences(str.upper, "a\n```text\nb\n```\nc\n") == "A\n```text\nb\n```\nC\n"
    assert markdown.outside_fences(str.upper, "a\n```text\nb\n") == "A\n```text\nb\n"


def test_a_text_is_the_sum_of_its_stretches():
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")):
        assert markdown.outside_fences(str, path.read_text()) == path.read_text()


def test_a_link_leads_to_a_heading_that_was_written_just_now(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One\n")
    assert markdown.problems_of_links("[a](#two)", page) == ["#two leads to no heading"]
    page.write_text("# One\n\n## Two\n")
    assert markdown.problems_of_links("[a](#two)", page) == []


# --- the concepts


@pytest.mark.parametrize("concept", CONCEPTS.values(), ids=CONCEPTS)
def test_a_concept_has_its_four_places(concept):
    assert (ROOT / concept.module).is_file()
    assert (ROOT / concept.tests).is_file()
    assert (ROOT / concept.chapter).is_file()
    assert concept.part.partition("#")[2] in markdown.places(ROOT / "DEEP_THEORY_GUIDE.md")


def test_the_table_of_the_readme_is_the_list_of_concepts():
    rows = re.findall(r"^\| (\d+) \| \*\*(\w+)\*\* \|.*$", (ROOT / "README.md").read_text(), re.M)
    assert rows == [(str(concept.number), concept.name) for concept in CONCEPTS.values()]
    for line in (ROOT / "README.md").read_text().splitlines():
        if row := re.match(r"\| \d+ \| \*\*(\w+)\*\* \|", line):
            concept = CONCEPTS[row[1]]
            targets = re.findall(r"\]\(([^)]+)\)", line)
            assert targets == [concept.part, concept.chapter, concept.module, concept.tests]
