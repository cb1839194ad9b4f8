"""Tuning: the settings of a population are searched while it trains; its best member is the run."""

from typing import get_args

import jax
import numpy as np
import pytest
from conftest import SMALL, compilations, csv_rows, identical, saved, small_data, smoke

import sbtt_jax
from sbtt_jax import cli, config, grid, recipes
from sbtt_jax.config import DataSettings, Settings, TrainSettings
from sbtt_jax.data import problem
from sbtt_jax.data.problem import prepare
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey, models
from sbtt_jax.run import lineage, winners
from sbtt_jax.run.evaluate import evaluate, table
from sbtt_jax.run.folder import RunFolder
from sbtt_jax.run.restore import Trained, restore, unstack
from sbtt_jax.run.scores import JUDGED, UNTUNED, view
from sbtt_jax.run.train import announcement, train
from sbtt_jax.ship import ship
from sbtt_jax.training import devices, population, tuning
from sbtt_jax.training.optimizer import Hyperparameters, hyperparameters

TRAIN = {
    "epochs": 6,
    "batch_size": 8,
    "steps_per_epoch": 3,
    "learning_rate": 1e-2,
    "optimizer": "adamw",
    "checkpoint_every": 1,
}
EVERY = 2  # epochs of a generation


@pytest.fixture(autouse=True)
def short_generations(monkeypatch):
    monkeypatch.setattr(tuning, "GENERATION", EVERY * TRAIN["steps_per_epoch"])


def settings_of(members=4, bandwidths=(4, 3), latents=2, **own):
    return Settings(
        bandwidths=bandwidths,
        seeds=(5,),
        tune=members,
        data=DataSettings(holdout_fraction=0.3),
        model=SMALL.model_copy(update={"inferred_inputs": 2, "latent_size": latents}),
        train=TrainSettings(**TRAIN | own),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Settings, and the folder of a finished run, in which the best members are used however little
    they are ahead."""
    settings, path = settings_of(), tmp_path_factory.mktemp("tuning") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "GENERATION", EVERY * TRAIN["steps_per_epoch"])
        patch.setattr(winners, "ERRORS", -1e9)
        train(settings, path, data=small_data(), verbose=False)
    return settings, path


@pytest.mark.parametrize("name", tuning.ranges(settings_of()))
def test_a_range_goes_from_its_lowest_to_its_highest_value(name):
    own = tuning.ranges(settings_of())[name]
    assert own.at(0.0) == own.low < own.at(0.4) < own.at(1.0) == pytest.approx(own.high)
    for share in (0.0, 0.3, 1.0):
        assert own.share(own.at(share)) == pytest.approx(share)
    assert (own.share(own.low / 2 - 1), own.share(own.high * 2)) == (0.0, 1.0)


def test_the_worst_continue_from_the_best_but_for_the_first_and_the_best_so_far():
    loss = np.array([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    best = loss.copy()
    np.testing.assert_array_equal(tuning.successors(loss, best), [0, 1, 2, 3, 4, 5, 2, 1])
    best[7] = 0.5  # once; now it is the worst but for the first
    np.testing.assert_array_equal(tuning.successors(loss, best), [0, 1, 2, 3, 4, 2, 1, 7])
    loss[2:5] = np.nan, np.inf, np.nan
    source = tuning.successors(loss, best)
    assert source[0] == 0
    assert set(np.flatnonzero(source != np.arange(8))) < {2, 3, 4}
    nothing = np.full(8, np.nan)
    np.testing.assert_array_equal(tuning.successors(nothing, nothing), np.arange(8))


@pytest.mark.slow
def test_the_first_member_is_the_model_that_is_not_tuned():
    """Through to the end, to the last bit where the program has the same parts."""
    parts = {"coordinated_dropout": 0.2, "coordinated_dropout_pass": 0.1, "input_penalty": 0.1}
    parts |= {"coordinated_dropout_whole": 0.1}
    tuned = prepare(settings_of(latents=None, **parts), small_data())
    alone = prepare(settings_of(0, latents=None, **parts), small_data())
    together, expected = population.fit(tuned), population.fit(alone)
    for i, key in enumerate(alone.keys):
        j = tuned.keys.index(key._replace(member=0))
        one, other = (
            jax.tree.map(lambda leaf, n=n: np.asarray(leaf)[n], (state.params, state.best))
            for state, n in ((together, j), (expected, i))
        )
        identical(one, other)


@pytest.mark.slow
def test_the_first_member_has_the_latents_of_the_model_that_is_not_tuned():
    """With zeros for those that others have, it is the same model to rounding."""
    every = []
    for members in (4, 0):
        prepared = prepare(settings_of(members), small_data())
        own = {key: grid.settings_of(prepared.settings, key) for key in prepared.keys}
        every.append(unstack(population.fit(prepared).best, own))
    together, alone = every
    for key, expected in alone.items():
        found = together[key._replace(member=0)]
        assert (found.epoch, found.settings.model) == (expected.epoch, expected.settings.model)
        for one, other in zip(*(jax.tree.leaves(x.params) for x in (found, expected)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_members_differ_within_the_ranges_and_do_not_depend_on_how_many_there_are():
    problems = [prepare(settings_of(members, latents=None), small_data()) for members in (4, 8)]
    few, many = map(population.begin, problems)
    ranges = tuning.ranges(problems[0].settings)
    # Trials that are left whole count by the weight of points that stay in the input: here, none.
    assert ranges.keys() == {"learning_rate", *tuning.RANGES} - {"coordinated_dropout_whole"}
    passing = tuning.ranges(settings_of(4, coordinated_dropout_pass=0.1))
    assert passing.keys() == {"learning_rate", *tuning.RANGES}
    for key in problems[0].keys:
        i, j = (problem.keys.index(key) for problem in problems)
        identical(
            *(
                jax.tree.map(lambda x, n=n: x[n], s._replace(parent=None))
                for s, n in ((few, i), (many, j))
            )
        )
    for name, own in ranges.items():
        values = getattr(many.values, name)
        assert len(set(values[1:8])) == 7
        assert own.low <= values[1:8].min() < values[1:8].max() <= own.high
    assert len(set(many.seed)) == len(many.seed) / 2  # of one seed at two bandwidths


def test_a_run_says_who_descends_from_whom_and_with_which_settings(run):
    settings, path = run
    ranges, rows = tuning.ranges(settings), csv_rows(path / "history.csv")
    assert list(rows[0])[:6] == ["bandwidth", "seed", "member", "epoch", "parent", "train_nll"]
    assert len(rows) == 2 * 4 * 6
    took_over = 0
    history = RunFolder(path).read_history()
    for bandwidth in settings.bandwidths:
        members = lineage.populations(history)[ModelKey(bandwidth, 5)]
        for member, own in members.items():
            for epoch, row in enumerate(own):
                tuned = [row[name] for name in ranges]
                if row["parent"] != member:
                    assert epoch in (2, 4)
                    took_over += 1
                    parent = members[row["parent"]][epoch - 1]
                    losses = [found[epoch - 1]["heldout_nll"] for found in members.values()]
                    assert parent["heldout_nll"] == min(losses)
                    assert own[epoch - 1]["heldout_nll"] > parent["heldout_nll"]
                    near = [parent[name] for name in ranges]
                    for name, a, b in zip(ranges, near, tuned, strict=True):
                        share = ranges[name].share
                        assert abs(share(a) - share(b)) < 5 * tuning.STRIDE
                    assert near != tuned
                elif epoch:
                    assert tuned == [own[epoch - 1][name] for name in ranges]
        first = members[0]
        assert all(row["parent"] == 0 and row["learning_rate"] == 0.01 for row in first)
    assert took_over == 2 * 2  # bandwidths, generations; one of four members


def test_latents_come_with_the_weights(run):
    settings, path = run
    history, sizes = RunFolder(path).read_history(), set()
    for members in lineage.populations(history).values():
        for own in members.values():
            sizes.add(own[0]["latent_size"])
            for before, row in enumerate(own[1:]):
                assert row["latent_size"] == members[row["parent"]][before]["latent_size"]
        assert {row["latent_size"] for row in members[0]} == {settings.model.latent_size}
    assert {2, 4, 8} >= sizes > {2}
    for key, one in restore(path).items():
        members, size = lineage.populations(history)[key], one.settings.model.latent_size
        own = lineage.descent(members, RunFolder(path).read_winners()[key])
        assert own[one.epoch]["latent_size"] == size
        assert one.params["readout"]["kernel"].shape == (size, 5)
        assert one.model.bottleneck.kernel.shape == (SMALL.decoder_size, size)


def test_a_search_is_shipped_as_the_models_that_are_used(run, tmp_path):
    settings, path = run
    (path / "evaluation").mkdir(exist_ok=True)
    for name in ("recording_member_1.nwb", "recording_submission.h5", "rates.h5", "notes.csv"):
        (path / "evaluation" / name).touch()
    ship(path, tmp_path / "shipped")
    folder = RunFolder(tmp_path / "shipped")
    shipped = {file.name for file in folder.evaluation.iterdir()}
    assert "notes.csv" in shipped
    assert not {file for file in shipped if file.endswith((".nwb", ".h5"))}
    assert folder.settings().tune == 0
    for (key, one), (own, other) in zip(
        restore(path).items(), restore(tmp_path / "shipped").items(), strict=True
    ):
        assert (key, one.epoch) == (own, other.epoch)
        identical(one.params, other.params)
        assert other.settings.model.latent_size == one.settings.model.latent_size
        assert len(folder.history_of([key])[key]) == settings.train.epochs


def test_the_member_of_least_heldout_loss_is_the_run(run):
    _, path = run
    trained, history = restore(path), RunFolder(path).read_history()
    assert list(trained) == [ModelKey(4, 5), ModelKey(3, 5)]
    chosen = csv_rows(path / "tuning" / "winners.csv")
    assert list(chosen[0]) == ["bandwidth", "seed", "member", "gain", "standard_error"]
    for key, one in trained.items():
        rows = [row for row in history if row["bandwidth"] == key.bandwidth]
        best = min(rows, key=lambda row: row["heldout_nll"])
        assert one.nll == pytest.approx(best["heldout_nll"], rel=1e-5)
        assert (one.epoch, one.settings.tune) == (best["epoch"], 0)
        assert one.settings.train.learning_rate == best["learning_rate"]
        assert one.settings.model.dropout == best["dropout"]
        own = RunFolder(path).history_of([key])[key]
        assert [row["epoch"] for row in own] == list(range(6))
        assert own[one.epoch]["heldout_nll"] == best["heldout_nll"]


class Fake(Trained):
    model = property(lambda self: self.nll)


@pytest.mark.parametrize(
    ("gain", "used"),
    [
        ((0.1, 0.2, 0.1), 2),
        ((0.5, -0.1, 0.2), 2),
        ((0.5, -0.1, 0.1), 0),
        ((0.0, 0.0, 0.0), 0),
    ],
)
def test_the_first_is_used_unless_another_is_ahead_by_more_than_chance(gain, used, monkeypatch):
    """Of three validation trials with ten spikes each; the standard error is the border."""
    settings = settings_of(bandwidths=(4,))
    keys = models(settings, 5)
    trained = {
        key: Fake(settings, {}, nll, 0) for key, nll in zip(keys, (3.0, 2.0, 1.0, 4.0), strict=True)
    }
    bits = {1: np.array(gain), 3: np.zeros(3)}
    monkeypatch.setattr(winners.priors, "learner", lambda view: lambda model: None)
    monkeypatch.setattr(
        winners, "_bits", lambda view, model, prior: (bits[model], np.full(3, 10.0))
    )
    (choice,) = winners.choose(settings, small_data(), trained).values()
    assert choice.member == used
    assert choice.gain == pytest.approx(np.sum(gain) / 30)
    assert choice.standard_error == pytest.approx(np.std(gain, ddof=1) * np.sqrt(3) / 30)


@pytest.mark.slow
def test_generations_do_not_depend_on_the_number_of_devices():
    tuned = prepare(settings_of(), small_data())
    meshes = [devices.model_mesh(1), devices.model_mesh(len(tuned.keys))]
    assert [mesh.size for mesh in meshes] == [1, 2]
    identical(*(jax.device_get(population.fit(tuned, mesh=mesh)) for mesh in meshes))


@pytest.mark.slow
def test_generations_compile_nothing():
    """But for copying members, once."""
    at = []
    with compilations() as compiled:
        tuned = prepare(settings_of(epochs=10), small_data())
        population.fit(tuned, on_epoch=lambda state, log: at.append(len(compiled)))
    assert at[0] > 0
    assert at[-1] == at[EVERY]


def test_a_member_that_is_not_finite_is_replaced():
    tuned = prepare(settings_of(), small_data())
    state = population.begin(tuned)
    state.values.learning_rate[3] = 1e30
    logs = []
    end = population.fit(tuned, state, on_epoch=lambda _, log: logs.append(log))
    lost = np.array([log.lost | log.failed for log in logs])
    assert lost[:EVERY, 3].any()
    assert not lost[EVERY:].any()
    assert end.values.learning_rate[3] < 1.0


# Where a generation begins, and within one.
@pytest.mark.parametrize("stop", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_resuming_continues_to_the_same_bits(run, stop, tmp_path):
    settings, path = run
    done = []
    how = {"data": small_data(), "verbose": False}
    train(
        settings,
        tmp_path / "run",
        on_epoch=lambda row: len(done) == stop - 1 or done.append(1),
        **how,
    )
    assert saved(tmp_path / "run")[0] == stop
    train(settings, tmp_path / "run", resume=True, **how)
    assert saved(tmp_path / "run") == saved(path)
    assert (tmp_path / "run" / "history.csv").read_bytes() == (path / "history.csv").read_bytes()


@pytest.mark.slow
def test_evaluation_and_python_use_the_winner(tmp_path):
    path, settings = (
        tmp_path / "run",
        smoke(bandwidths=(6,), tune=4, train={"epochs": 4}, data={"holdout_fraction": 0.3}),
    )
    train(settings, path, verbose=False)
    found = evaluate(path)
    (key,), (row,) = restore(path), found.models
    assert (row["bandwidth"], row["seed"], row["epoch"]) == (6, 0, restore(path)[key].epoch)
    assert "member" not in row
    first = restore(path, tuned=False)[key]
    assert first.settings.train.learning_rate == settings.train.learning_rate
    seen = view(settings, problem.load(settings), 6)
    _, rates, blind = seen.infer(first.model)
    assert row[UNTUNED] == pytest.approx(seen.score(rates[seen.scored], blind)[JUDGED])
    assert "before tuning" in table(found)
    before, after = row[UNTUNED], row[JUDGED]
    assert ("settings that tuning began with predict" in table(found)) == (before > after)
    assert ("has the settings that tuning began with" in table(found)) == (before == after)
    page = (path / "evaluation" / "report.html").read_text()
    assert "<h2>Tuning</h2>" in page
    fitted = sbtt_jax.load(path)
    assert fitted.settings.tune == 0
    assert [row["epoch"] for row in fitted.history] == [0, 1, 2, 3]
    fitted.save(tmp_path / "saved")
    again = sbtt_jax.load(tmp_path / "saved")
    counts = np.random.default_rng(0).poisson(1.0, (3, 8, fitted.neurons))
    np.testing.assert_array_equal(fitted.infer(counts).rates, again.infer(counts).rates)
    assert again.settings == fitted.settings


@pytest.mark.parametrize(("epochs", "said"), [(EVERY, True), (EVERY + 1, False)])
def test_a_search_of_one_generation_is_told(epochs, said):
    prepared = problem.prepare(settings_of(epochs=epochs), small_data())
    lines = announcement(prepared)
    assert said == any(f"second generation, which begins after {EVERY}" in line for line in lines)


@pytest.mark.slow
def test_fit_in_memory_is_what_a_run_folder_holds(tmp_path):
    counts = np.where(small_data().observed, small_data().counts, np.nan)
    how = {
        "tune": 4,
        "bin_width": 0.02,
        "model": {"encoder_size": 5, "decoder_size": 6, "latent_size": 3},
        "train": {"epochs": 6, "warmup_epochs": 1, "steps_per_epoch": 3},
    }
    memory = sbtt_jax.fit(counts, **how)
    disk = sbtt_jax.fit(counts, **how, out=tmp_path / "run")
    identical(memory.params, disk.params)
    assert memory.epoch == disk.epoch
    assert len(memory.history) == len(disk.history) == 6
    assert memory.settings.train.learning_rate == pytest.approx(
        disk.settings.train.learning_rate, rel=1e-5
    )


def test_settings_move_to_where_the_loss_is_least():
    """If it depends on them alone, and is least at one place within the ranges."""
    settings = settings_of(16, (4,))
    keys, ranges = grid.models(settings, 5), tuning.ranges(settings)
    given = hyperparameters(settings.model, settings.train)
    values = [tuning.first(settings, key, given) for key in keys]
    values = jax.tree.map(lambda *leaves: np.stack(leaves), *values)

    def loss():
        shares = [[own.share(float(x)) for x in getattr(values, n)] for n, own in ranges.items()]
        return ((np.array(shares) - 0.3) ** 2).sum(0)

    first = best = loss()
    for generation in range(1, 25):
        source, values = tuning.next_generation(settings, keys, loss(), best, values, generation)
        best = np.minimum(best[source], loss())
    assert loss().min() < 0.3 * first.min()
    assert np.median(loss()) < 0.2 * np.median(first)
    assert loss()[0] == first[0]


@pytest.mark.slow
def test_the_winner_can_be_trained_again_without_a_search(run):
    settings, path = run
    history = RunFolder(path).read_history()
    known = {}
    for bandwidth in settings.bandwidths:
        name = f"bandwidth_0{bandwidth}_seed_5"
        assert (path / "tuning" / f"{name}.png").exists()
        again = recipes.load(path / "tuning" / f"{name}.yaml")
        assert (again.tune, again.bandwidths, again.seeds) == (0, (bandwidth,), (5,))
        known[bandwidth] = again
    again = max(known.values(), key=lambda own: len(own.changes))
    assert again.changes  # or there is nothing to see below
    members = lineage.populations(history)[ModelKey(again.bandwidths[0], 5)]
    used = RunFolder(path).read_winners()[ModelKey(again.bandwidths[0], 5)]
    expected, found = lineage.descent(members, used), []
    population.fit(
        prepare(again, small_data()),
        on_epoch=lambda state, log: found.append(jax.device_get(state.values)),
    )
    assert len(found) == len(expected) == 6
    for values, row in zip(found, expected, strict=True):
        for setting in tuning.ranges(settings):
            assert getattr(values, setting)[0] == pytest.approx(row[setting], rel=1e-5)


def changing(*changes):
    parts = {"coordinated_dropout": 0.2, "coordinated_dropout_whole": 0.1}
    return config.updated(settings_of(0, (3,), **parts), changes=changes)


def test_changes_may_be_listed_in_any_order():
    settings = changing((5, "dropout", 0.1), (2, "dropout", 0.2))
    values = population.begin(prepare(settings, small_data())).values
    found = [tuning.changed(settings, values, epoch).dropout[0] for epoch in (1, 2, 4, 5, 9)]
    np.testing.assert_allclose(found, [values.dropout[0], 0.2, 0.2, 0.1, 0.1])


def test_the_winner_of_a_stopped_search_is_the_one_that_is_used():
    """A member whose own best epoch is from before it took over from another has lost it."""
    losses = [[0.60, 0.61, 0.62, 0.50], [0.58, 0.55, 0.57, 0.70], [0.58, 0.56, 0.57, 0.56]]
    best, parent, rows = np.full(4, np.inf), np.arange(4), []
    for number, loss in enumerate(map(np.array, losses)):
        for member in range(4):
            own = {"member": member, "epoch": number, "parent": int(parent[member])}
            rows.append({"bandwidth": 5, "seed": 0, "heldout_nll": float(loss[member])} | own)
        best = np.minimum(best, loss)
        if number < 2:
            parent = tuning.successors(loss, best)
            best = best[parent]
    (members,) = lineage.populations(rows).values()
    assert best[lineage.winner(members)] == best.min()
    kept = lineage.descent(members, lineage.winner(members))
    assert min(map(lineage.loss, kept)) == best.min()


@pytest.mark.slow
def test_changes_take_place_in_their_epoch():
    """As if training had stopped before it and gone on with other settings."""
    changes = (4, "dropout", 0.4), (4, "learning_rate", 1e-3)
    changed, states = prepare(changing(*changes), small_data()), []
    found = population.fit(
        changed, on_epoch=lambda state, log: states.append(jax.device_get(state))
    )
    after = {"model": {"dropout": 0.4}, "train": {"learning_rate": 1e-3}}
    other = prepare(config.updated(changing(), **after), small_data())
    continued = states[3]._replace(values=population.begin(other).values)
    identical(found.params, population.fit(other, continued).params)
    unchanged = population.fit(prepare(changing(), small_data()))
    both = map(jax.tree.leaves, (found.params, unchanged.params))
    assert all((one != other).any() for one, other in zip(*both, strict=True))


@pytest.mark.slow
def test_a_run_with_changes_resumes_to_the_same_bits(tmp_path):
    settings = changing((2, "learning_rate", 1e-3), (3, "dropout", 0.4))
    how = {"data": small_data(), "verbose": False}
    train(settings, tmp_path / "whole", **how)
    for stop in (2, 3):
        done, path = [], tmp_path / f"stopped_{stop}"
        enough = lambda row, done=done, stop=stop: done.append(1) or len(done) == stop  # noqa: E731
        train(settings, path, on_epoch=enough, **how)
        assert saved(path)[0] == stop
        train(settings, path, resume=True, **how)
        assert saved(path) == saved(tmp_path / "whole")


def test_what_can_change_is_what_differs_between_models():
    assert get_args(config.Changeable) == Hyperparameters._fields


WRONG_CHANGES = {
    "unknown": ((2, "epochs", 3.0), "changes"),
    "out of range": ((2, "dropout", 1.5), "changes: model.dropout"),
    "of nothing": ((2, "clip_norm", 0.5), "clip_norm, which is not one number"),
    "before the first epoch": ((-1, "dropout", 0.5), "changes"),
    "after the last epoch": ((1000, "dropout", 0.5), "changes has dropout change in epoch 1000"),
}


@pytest.mark.parametrize("case", WRONG_CHANGES)
def test_wrong_changes_are_refused(case):
    change, message = WRONG_CHANGES[case]
    with pytest.raises(InputError, match=message) as error:
        smoke(changes=[change])
    assert "\n" not in str(error.value)


REFUSED = {
    "too few": ({"tune": 3}, "tune is 3; it must be 0 or at least 4"),
    "a list": ({"train": {"learning_rate": (1e-3, 1e-2)}}, "list of learning_rate"),
    "nothing to choose by": ({"data": {"holdout_fraction": 0.0}}, "tune needs held-out points"),
    "changes too": ({"changes": [(2, "dropout", 0.2)]}, "tune with changes"),
    "other losses": (
        {"model": {"posterior": True}, "train": {"marginal_epochs": 2}},
        "tune with train.marginal_epochs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_tuned_is_refused(case):
    changes, message = REFUSED[case]
    given = smoke(data={"holdout_fraction": 0.3})
    with pytest.raises(InputError, match=message):
        config.updated(given, **{"tune": 8} | changes)


def test_from_the_command_line(command, tmp_path):
    own = ["--config", "smoke", "--bandwidths", "3", "--data.holdout_fraction", "0.3"]
    status, _, _ = command(cli.train, *own, "--tune", 4, "--out", tmp_path / "run")
    assert status == 0
    assert len(grid.models(RunFolder(tmp_path / "run").settings(), 12)) == 4
