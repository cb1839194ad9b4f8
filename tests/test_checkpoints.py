"""What is restored is what was written, or is refused by name."""

import shutil

import pytest
from conftest import identical, small_problem
from flax import nnx

from sbtt_jax.config import ModelSettings
from sbtt_jax.errors import InputError
from sbtt_jax.run import checkpoints
from sbtt_jax.training import epoch, population

TINY = ModelSettings(encoder_size=1, decoder_size=1)


def state(seed, model=TINY):
    """Two models, as training begins them."""
    return population.begin(small_problem(model=model, seeds=(seed, seed + 1), average_decay=0.9))


def best(folder, epochs=None, neurons=5):
    params = nnx.state(nnx.eval_shape(lambda: epoch.build(neurons, TINY)))
    return checkpoints.restore_best(folder, lambda shapes: (params, 2), epochs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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


def test_a_state_comes_back_and_the_one_before_stays(folder, tmp_path):
    like = state(9)
    assert checkpoints.resume(tmp_path / "none", like) == (like, [])
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        best(tmp_path / "none")
    assert names(folder) == ["2", "4"]
    assert checkpoints.epochs_saved(folder) == [4, 2]
    found, problems = checkpoints.resume(folder, like)
    assert problems == []
    identical(found, state(4)._replace(values=like.values))
    for epochs in (2, 4, None):
        identical(best(folder, epochs), state(epochs or 4).best)
    with pytest.raises(InputError, match="no checkpoint after 3 epochs; there are 4, 2"):
        best(folder, 3)


def damaged(checkpoint):
    """Every file with a bit flipped, cut short, emptied and removed, in turn."""
    for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
        content = path.read_bytes()
        at = len(content) // 2
        flipped = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        for what, bad in (("flip", flipped), ("cut", content[:-1]), ("empty", b""), ("gone", None)):
            path.write_bytes(bad or b"")
            if bad is None:
                path.unlink()
            yield f"{what} {path.relative_to(checkpoint)}"
        path.write_bytes(content)


def test_damage_is_refused_by_name_or_changes_nothing(folder):
    like, skipped, refused = state(9), 0, 0
    newest, before = (state(epochs)._replace(values=like.values) for epochs in (4, 2))
    for case in damaged(folder / "4"):
        print(case)  # shown if the test fails
        found, problems = checkpoints.resume(folder, like)
        identical(found, before if problems else newest)
        assert all(problem.startswith(str(folder / "4")) for problem in problems)
        skipped += len(problems)
        if " rest/" in case:
            continue
        try:
            identical(best(folder), newest.best)
        except InputError as error:
            refused += 1
            said = str(error)
            assert said.startswith(str(folder / "4"))
            assert "the checkpoint after 2 epochs is intact: evaluate.py reads it" in said
    assert skipped > refused > 10
    assert checkpoints.resume(folder, like)[1] == []


def test_intact_arrays_of_another_checkpoint_are_refused(folder):
    """Which is for the sums to notice: files that Orbax wrote have checksums of their own."""
    for item in ("best", "rest"):
        shutil.rmtree(folder / "4" / item)
        shutil.copytree(folder / "2" / item, folder / "4" / item)
        _, (problem,) = checkpoints.resume(folder, state(9))
        assert "not as written (SHA-256 sums differ)" in problem
        with pytest.raises(InputError, match=r"4/best: damaged: .*not as written"):
            best(folder)


def test_without_any_intact_checkpoint(folder):
    for checkpoint in folder.iterdir():
        next(damaged(checkpoint / "rest" / "d"))
    with pytest.raises(InputError, match=r"4/rest: .*2/rest: .*no checkpoint is intact: --over"):
        checkpoints.resume(folder, state(0))
    identical(best(folder), state(4).best)


def test_a_half_deleted_checkpoint_is_not_taken_for_one_of_an_older_version(folder):
    """Killed while it was deleted: sums are gone, then all that only resuming needs."""
    shutil.rmtree(folder / "4" / "sums")
    assert "4/rest: damaged" in checkpoints.resume(folder, state(0))[1][0]
    shutil.rmtree(folder / "4" / "rest")
    found, problems = checkpoints.resume(folder, state(0))
    assert "4: keeps the best weights only" in problems[0]
    identical(found.best, state(2).best)


def test_other_shapes_are_refused_before_anything_is_read(folder):
    wider = TINY.model_copy(update={"decoder_size": 6})
    with pytest.raises(InputError, match=r"params\.\S+ is 2 x 3 .*config\.yaml asks for 2 x 18"):
        checkpoints.resume(folder, state(0, wider))
    with pytest.raises(InputError, match="asks for 2 x 5000000000 x 3"):
        best(folder, neurons=5_000_000_000)


def test_leftovers_of_a_kill_are_ignored_and_removed(folder):
    for name in ("6.orbax-checkpoint-tmp", "7.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "4" / "best", folder / name / "best.orbax-checkpoint-tmp")
    assert checkpoints.epochs_saved(folder) == [4, 2]
    identical(checkpoints.resume(folder, state(9))[0].best, state(4).best)
    assert "7.orbax-checkpoint-tmp" in names(folder)  # another process may be writing it
    checkpoints.save(folder, 6, state(6))
    assert names(folder) == ["4", "6"]
    identical(best(folder), state(6).best)


def test_damaged_ones_do_not_push_out_the_intact(folder):
    """Continued from 2 past a damaged 4: at any moment there is one to resume from."""
    next(damaged(folder / "4" / "best" / "d"))
    for epochs in (3, 4, 5):
        checkpoints.save(folder, epochs, state(epochs))
        found, _ = checkpoints.resume(folder, state(0))
        identical(found.best, state(epochs).best)
    assert names(folder) == ["4", "5"]


def test_best_alone_can_be_evaluated_not_resumed(tmp_path):
    checkpoints.save(tmp_path, 4, state(4).best)
    folders = {path.name for path in (tmp_path / "4").iterdir() if path.is_dir()}
    assert folders == {"best", "sums"}  # files of Orbax's own differ from version to version
    identical(best(tmp_path), state(4).best)
    with pytest.raises(InputError, match="best weights only"):
        checkpoints.resume(tmp_path, state(0))


def test_without_sums_damage_is_still_no_traceback(folder):
    """As in checkpoints of older versions, which had none."""
    shutil.rmtree(folder / "4" / "sums")
    identical(best(folder), state(4).best)
    refused = 0
    for case in damaged(folder / "4" / "best"):
        if case.startswith("cut"):
            try:
                best(folder)
            except InputError:
                refused += 1
    assert refused > 2
