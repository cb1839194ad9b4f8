"""The code in the documentation runs."""

import os
import re

import pytest
from conftest import ROOT, call


@pytest.mark.slow
def test_every_worked_example_of_extending(tmp_path):
    """A user's own observation models, file format and sampling pattern, from data to scores."""
    text = (ROOT / "docs" / "extending.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    (tmp_path / "script.py").write_text("\n".join(blocks))
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = call("script.py", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote run/evaluation") == 2
    metrics = (tmp_path / "run" / "evaluation" / "metrics.csv").read_text()
    assert metrics.count("\n") == 3


def test_every_link_between_pages_leads_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
