"""What is restored is what was written, or is refused by name."""

import shutil
import subprocess

import jax
import numpy as np
import pytest
from conftest import SMALL, quick
from flax import nnx

from sbtt_jax import checkpoints, training
from sbtt_jax.errors import InputError

SETTINGS = quick(average_decay=0.9)


def state(seed, neurons=5, models=2):
    begun = training.begin(list(range(seed, seed + models)), neurons, 17, SMALL, SETTINGS)
    return jax.tree.map(np.asarray, begun)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints after 2 and 4 epochs, of different states."""
    folder = tmp_path_factory.mktemp("written") / "checkpoints"
    for epochs in (1, 2, 4):
        checkpoints.save(folder, epochs, state(epochs))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def identical(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_a_state_comes_back_and_the_one_before_stays(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["2", "4"]
    for epochs in (2, 4):
        identical(checkpoints.resume(folder, epochs, state(9)), state(epochs))
    assert checkpoints.neurons(folder) == 5
    best = checkpoints.restore_best(folder, nnx.state(training.build(5, SMALL)), 2)
    identical(best[1].params, nnx.state(training.build(5, SMALL, 5)))


def test_sums_are_those_that_sha256sum_checks(folder):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum on this system")
    checked = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder / "4", capture_output=True
    )
    assert checked.returncode == 0
    assert checked.stdout.count(b": OK") == len(files(folder / "4")) - 1


def damaged(folder):
    """Every file of the newest checkpoint with a bit flipped, cut short, emptied and removed."""
    for path in files(folder / "4"):
        content = path.read_bytes()
        at = len(content) // 2
        flipped = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        for what, bad in (("flip", flipped), ("cut", content[:-1]), ("empty", b""), ("gone", None)):
            path.unlink()
            if bad is not None:
                path.write_bytes(bad)
            yield f"{what} {path.name}", path
        path.write_bytes(content)


def test_a_damaged_file_is_noticed_named_and_passed_over(folder):
    for case, path in damaged(folder):
        if path.name == "SHA256SUMS" and case.startswith("gone"):
            continue  # as it was before there were sums
        problem = checkpoints.damage(folder / "4")
        assert problem, case
        if path.name != "SHA256SUMS":
            assert path.relative_to(folder / "4").as_posix() in problem
        assert checkpoints.newest_whole(folder) == (2, [f"{folder / '4'}: {problem}"])
        with pytest.raises(InputError, match=r"the one after 2 epochs is whole.*--checkpoint 2"):
            checkpoints.neurons(folder)
    assert checkpoints.newest_whole(folder) == (4, [])
    assert checkpoints.neurons(folder, 2) == 5


def test_without_sums_damage_is_still_no_traceback(folder):
    """Checkpoints from before there were sums: what Orbax finds out is said in one line."""
    (folder / "4" / "SHA256SUMS").unlink()
    weights, refused = nnx.state(training.build(5, SMALL)), 0
    for case, path in damaged(folder):
        if case.startswith("cut") and "best" in path.parts:
            try:
                checkpoints.restore_best(folder, weights, 2)
            except InputError:
                refused += 1
    assert refused > 2


def test_other_shapes_are_refused_before_anything_is_read(folder):
    with pytest.raises(InputError, match=r"params\.\S+ is 2 x 5 .*config\.yaml asks for 2 x 6"):
        checkpoints.resume(folder, 4, state(0, neurons=6))
    with pytest.raises(InputError, match="asks for 3"):
        checkpoints.restore_best(folder, nnx.state(training.build(5, SMALL)), 3)
    huge = nnx.state(nnx.eval_shape(lambda: training.build(5_000_000_000, SMALL)))
    with pytest.raises(InputError, match="5000000000"):
        checkpoints.restore_best(folder, huge, 2)


def test_leftovers_of_a_kill_are_ignored_and_go(folder):
    (folder / ".6.part" / "best").mkdir(parents=True)
    (folder / ".2.old").mkdir()
    (folder / "8.orbax-checkpoint-tmp-1").mkdir()
    assert checkpoints.newest_whole(folder) == (4, [])
    checkpoints.save(folder, 6, state(6))
    assert sorted(p.name for p in folder.iterdir()) == ["4", "6"]


def test_damaged_ones_do_not_push_out_the_whole(folder):
    """Going on from 2 past a damaged 4: what is saved next stays, and so does 2."""
    next(damaged(folder))
    checkpoints.save(folder, 3, state(3))
    assert sorted(p.name for p in folder.iterdir()) == ["2", "3"]
    checkpoints.save(folder, 4, state(4))
    assert checkpoints.newest_whole(folder) == (4, [])


def test_resuming_one_from_before_there_was_recovery(folder):
    shutil.rmtree(folder / "4" / "recovery")
    (folder / "4" / "SHA256SUMS").unlink()
    identical(checkpoints.resume(folder, 4, state(0)), state(4))


def test_best_alone_can_be_evaluated_not_resumed(folder, tmp_path):
    checkpoints.copy_best(folder, tmp_path / "kept")
    kept = tmp_path / "kept"
    assert [p.name for p in kept.iterdir()] == ["4"]
    assert checkpoints.damage(kept / "4") is None
    weights = nnx.state(training.build(5, SMALL))
    identical(
        checkpoints.restore_best(kept, weights, 2), checkpoints.restore_best(folder, weights, 2)
    )
    with pytest.raises(InputError, match="best weights only"):
        checkpoints.resume(kept, 4, state(0))
