"""The oldest versions that are tested are the oldest that are allowed."""

from conftest import ROOT


def lines(name):
    text = (ROOT / name).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and line[0] != "#"]


def test_oldest_versions_are_the_lower_bounds():
    bounds = dict(line.split(",")[0].split(">=") for line in lines("requirements.txt"))
    pins = dict(line.split("==") for line in lines("requirements-oldest.txt"))
    assert bounds.keys() == pins.keys()
    for name, bound in bounds.items():
        pin = pins[name]
        assert pin.removeprefix(bound).strip(".0") == "", f"{name}: {pin} is not {bound}"
        assert pin.startswith(bound)
