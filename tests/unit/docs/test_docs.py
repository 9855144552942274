"""The documentation is complete, its links lead somewhere, and the manifests in it are valid."""

import re
from pathlib import Path

import pytest

from agent_api.conditions import REASON_MEANINGS, Reason
from agent_api.manifest import load_documents

ROOT = Path(__file__).resolve().parents[3]
REASONS = ROOT / "docs" / "reasons"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_has_a_page_with_cause_check_and_remedy(reason: Reason) -> None:
    text = (REASONS / f"{reason}.md").read_text()
    assert text.startswith(f"# {reason}\n\n{REASON_MEANINGS[reason]} Seen in ")
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["Cause", "Check", "Remedy"]
    sections = re.split(r"^## \w+$", text, flags=re.MULTILINE)[1:]
    assert all(section.strip() for section in sections)


def test_every_page_is_about_a_reason() -> None:
    assert {path.stem for path in REASONS.glob("*.md")} == {*Reason, "README"}


def test_every_reason_has_a_meaning_and_a_place_in_the_list() -> None:
    assert set(REASON_MEANINGS) == set(Reason)
    listed = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (.*) \|$", (REASONS / "README.md").read_text(), re.MULTILINE)
    assert listed == [(str(reason), meaning) for reason, meaning in REASON_MEANINGS.items()]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_manifests_in_pages_are_valid(page: Path) -> None:
    for language, text in BLOCK.findall(page.read_text()):
        if language == "yaml":
            load_documents(text, source=name(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_and_examples_that_pages_name_exist(page: Path) -> None:
    text = page.read_text()
    targets = set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z][a-z0-9-]*)", text, re.MULTILINE)) <= targets
    assert [path for path in re.findall(r"\bexamples/[\w-]+\.yaml", text) if not (ROOT / path).exists()] == []


def test_decisions_are_numbered_and_listed() -> None:
    folder = ROOT / "docs" / "decisions"
    records = sorted(path for path in folder.glob("*.md") if path.name != "README.md")
    assert [path.name[:4] for path in records] == [f"{number:04}" for number in range(1, len(records) + 1)]
    listed = (folder / "README.md").read_text()
    for path in records:
        title = path.read_text().splitlines()[0].removeprefix(f"# {path.name[:4]} ")
        assert f"| [{path.name[:4]}]({path.name}) | {title} |" in listed
        for part in ("**Context.**", "**Decision.**", "**Rejected.**", "**Consequences.**"):
            assert part in path.read_text()
