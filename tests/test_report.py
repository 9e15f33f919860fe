import re
from pathlib import Path

import report
from conftest import ROOT


def test_the_readme_holds_what_the_results_say():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == report.filled_in(readme), "README.md is stale; type: make report"
    assert "| Model-IT-finetuned" in readme
    by_hand = readme.replace("| Model-IT-finetuned ", "| Model-IT-finetuned!")
    assert by_hand != report.filled_in(by_hand) == readme


def test_every_file_the_readme_names_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    folders = "Fine_tuning|configs|models|results|benchmarks|tests|datasets"
    paths = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    modules = [f"Fine_tuning/finetuning/{name}" for name in re.findall(r"`\s*(\w+\.py)`", text)]
    assert len(modules) > 15
    missing = [name for name in [*links, *paths, *modules] if not Path(ROOT, name).exists()]
    assert not missing
    listed = {Path(name).name for name in modules}
    unlisted = {p.name for p in (ROOT / "Fine_tuning" / "finetuning").glob("*.py")} - listed - {"__init__.py"}
    assert not unlisted, f"the file map does not show {unlisted}"
