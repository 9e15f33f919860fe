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
    names = set(re.findall(r"`\s*(\w+\.py)`", text))
    assert len(names) > 20
    missing = [name for name in [*links, *paths] if not (ROOT / name).exists()]
    missing += [name for name in names if not list(ROOT.glob(f"[Fb]*/**/{name}"))]
    assert not missing
    unlisted = {path.name for path in (ROOT / "Fine_tuning").rglob("*.py")} - names - {"__init__.py"}
    unlisted -= {Path(path).name for path in paths}
    assert not unlisted, f"the file map does not show {unlisted}"
