"""The package as it is installed, away from the checkout."""

import re
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT, python

SCRIPT = """
import numpy as np, sbtt_jax
assert "installed" in sbtt_jax.__file__, sbtt_jax.__file__
spikes = np.random.default_rng(0).poisson(1.0, (20, 10, 5))
short = {"epochs": 2, "warmup_epochs": 1, "steps_per_epoch": 2}
fitted = sbtt_jax.fit(spikes, bin_width=0.02, train=short)
assert fitted.infer(spikes).rates.shape == spikes.shape
"""


@pytest.mark.slow
def test_a_wheel_works_outside_of_the_checkout(tmp_path):
    wheels, installed = tmp_path / "wheels", tmp_path / "installed"
    pip = sys.executable, "-m", "pip", "--quiet"
    subprocess.run([*pip, "wheel", "--no-deps", "-w", wheels, ROOT], check=True)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith("/METADATA"))
        shown = file.read(name).decode()  # on a package index, where files are not
    assert "](https://" in shown
    assert not re.findall(r"\]\((?!https?:).*", shown)
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, wheel], check=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    how = {"cwd": tmp_path, "PYTHONPATH": str(installed)}
    train = installed / "bin" / "sbtt", "train", "--config", "smoke", "--out", "run"
    for arguments in (train, (installed / "bin" / "sbtt", "evaluate", "run"), ("script.py",)):
        done = subprocess.run(**python(*arguments, **how))
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "evaluation" / "report.html").exists()
    assert (installed / "sbtt_jax" / "py.typed").exists()
