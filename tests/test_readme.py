"""What README and guide tell to run is run, so that it stays true."""

import re
from pathlib import Path

import pytest

from margin_jax import cli

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide"
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(GUIDE.glob("*.md")))
}
README = PAGES[ROOT / "README.md"]


def blocks(language, *texts):
    """The code in that language, of the README if nothing else is said."""
    found = [re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) for text in texts or [README]]
    return [block for of_page in found for block in of_page]


@pytest.fixture
def elsewhere(tmp_path):
    """A folder to run in, with a stand-in for the logger that the README shows."""
    (tmp_path / "wandb.py").write_text(
        "import contextlib\n"
        "class Log:\n"
        "    def log(self, record, step): print('logged', step, record['margin'])\n"
        "def init(project): return contextlib.nullcontext(Log())\n"
    )
    return tmp_path


@pytest.mark.parametrize("snippet", dict.fromkeys(blocks("python", *PAGES.values())))
def test_snippets_run(snippet, elsewhere, monkeypatch, capsys):
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(elsewhere)
    monkeypatch.setenv("MARGIN_JAX_SMALL", "1")
    exec(snippet, {"__name__": "__main__"})
    shown = capsys.readouterr().out
    if "schedule.update" in snippet:
        margins = [float(line.split()[-1]) for line in shown.splitlines()]
        assert len(margins) == 3
        assert margins == sorted(margins)
    if "wandb" in snippet:
        assert [line.split()[:2] for line in shown.splitlines()] == [
            ["logged", "1"],
            ["logged", "2"],
        ]


def test_the_readme_is_read_in_three_minutes():
    assert len(README.split()) <= 900
    assert len(README.splitlines()) <= 130


def test_the_first_command_trains(tmp_path, monkeypatch):
    command = blocks("bash")[0]
    assert command.count("&&") == 2
    train = command.split("&&")[-1].split()
    assert train[0] == ".venv/bin/margin-jax"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MARGIN_JAX_SMALL", "1")
    with pytest.raises(SystemExit) as ended:
        cli.main(train[1:])
    assert not ended.value.code
    _, table = PAGES[GUIDE / "quick_start.md"].split("| `report.json`")
    for name in re.findall(r"`(\w+(?:\.\w+)?/?)`", table.split("\n\n")[0]):
        assert (tmp_path / "runs" / "glyphs-dams-0" / name).exists() or not name.endswith(
            ("json", "/")
        )


def test_ci_does_what_the_readme_says():
    ci = (ROOT / ".ci" / "run").read_text()
    install, test = blocks("bash")[1].split(" && ")
    extras = re.findall(r"pip install -e '\.\[(.+)\]'", install)
    assert extras == ["test"]
    assert re.findall(r"environment newest .* -e '\.\[(.+)\]'", ci) == ["test,lint"]
    assert test.strip().removeprefix(".venv/bin/") in ci.splitlines()


def test_commands_and_options_exist(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line for block in blocks("bash", *PAGES.values()) for line in block.splitlines()]
    used = [
        line.split("#")[0].split("margin-jax ")[1].split()
        for line in lines
        if "margin-jax " in line
    ]
    assert {command for command, *_ in used} == {
        "train",
        "compare",
        "evaluate",
        "embed",
        "features",
        "verify",
        "index",
        "search",
        "forget",
        "schedules",
        "datasets",
        "export",
    }
    for command, *arguments in used:
        nested = {("schedules", "plot"), ("datasets", "describe")}
        subcommand = [a for a in arguments[:1] if (command, a) in nested]
        with pytest.raises(SystemExit):
            cli.main([command, *subcommand, "--help"])
        shown = capsys.readouterr().out
        assert {a for a in arguments if a.startswith("--") and a not in shown} == set()


def links(page):
    """What it links to, or shows, that is not on the web."""
    return re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page])


def anchors(page):
    """The headings as GitHub and the site make targets of them."""
    prose = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pictures_and_links_exist(page):
    for target in links(page):
        file, _, anchor = target.partition("#")
        there = (page.parent / file).resolve() if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_guide_begins_with_a_line_for_every_page():
    listed = re.findall(r"^- \[.+\]\((\w+\.md)\): ", PAGES[GUIDE / "README.md"], re.MULTILINE)
    assert sorted(["README.md", *listed]) == sorted(page.name for page in GUIDE.iterdir())
