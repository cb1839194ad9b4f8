import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sbtt_jax import evaluation, gru
from sbtt_jax.losses import poisson_nll
from sbtt_jax.model import SequentialAutoencoder

TRIALS, BINS, NEURONS = 3, 8, 6


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    counts = jnp.asarray(rng.poisson(1.0, (TRIALS, BINS, NEURONS)), jnp.float32)
    return counts, jnp.asarray(rng.random(counts.shape) < 0.5)


def model(**settings):
    settings = {"encoder_size": 5, "decoder_size": 4, **settings}
    return SequentialAutoencoder(NEURONS, **settings, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"encoder_size": 9, "decoder_size": 3},
        {"latent_size": 2},
        {"mask_input": True, "input_scaling": True},
    ],
)
def test_sizes_are_free(batch, settings):
    inference = model(**settings)(*batch)
    decoder = settings.get("decoder_size", 4)
    assert inference.lograte.shape == (TRIALS, BINS, NEURONS)
    assert inference.latent.shape == (TRIALS, BINS, settings.get("latent_size", decoder))
    assert inference.ic.shape == (TRIALS, decoder)


@pytest.mark.parametrize("settings", [{}, {"mask_input": True, "input_scaling": True}])
def test_counts_at_missing_points_are_never_read(batch, settings):
    counts, observed = batch
    net = model(**settings)
    spoiled = jnp.where(observed, counts, jnp.nan)
    np.testing.assert_array_equal(net(counts, observed).lograte, net(spoiled, observed).lograte)


def test_every_observed_point_is_read(batch):
    counts, observed = batch
    jacobian = jax.jacobian(lambda c: model()(c, observed).ic.sum())(counts)
    np.testing.assert_array_equal(np.asarray(jacobian) != 0, observed)


def test_the_initial_state_is_no_latent_and_all_that_the_decoder_gets(batch):
    net = model()
    ic = net.encode(*batch)
    latent = net.decode(ic, BINS)
    assert not np.allclose(latent[:, 0], ic)
    np.testing.assert_allclose(net.decode(latent[:, 2], 3), latent[:, 3:6], atol=1e-6)


def test_dropout_only_in_training(batch):
    net = model(dropout=0.5)
    still = net(*batch).lograte
    np.testing.assert_array_equal(still, net(*batch).lograte)
    first, second = (net(*batch, rngs=nnx.Rngs(seed)).lograte for seed in (1, 2))
    assert not np.allclose(first, still)
    assert not np.allclose(first, second)
    undropped = model(dropout=0.0)(*batch, rngs=nnx.Rngs(1)).lograte
    np.testing.assert_array_equal(undropped, still)


def test_scaled_inputs_do_not_depend_on_how_much_was_observed():
    counts = jnp.ones((1, BINS, NEURONS))
    few = jnp.zeros(counts.shape, bool).at[..., ::3].set(True)  # a third of the neurons
    net = model(input_scaling=True)
    plain = model(input_scaling=False)
    np.testing.assert_allclose(
        net.encode(counts, few), plain.encode(3 * counts, few), rtol=1e-5, atol=1e-6
    )


def test_the_mask_tells_a_silent_sample_from_a_missing_one():
    counts = jnp.zeros((1, BINS, NEURONS))
    all_seen = jnp.ones(counts.shape, bool)
    some_seen = all_seen.at[:, :, 0].set(False)
    assert not np.allclose(
        *(model(mask_input=True).encode(counts, seen) for seen in (all_seen, some_seen))
    )
    assert np.allclose(*(model().encode(counts, seen) for seen in (all_seen, some_seen)))


def test_weights_start_as_pytorch_starts_them():
    net = SequentialAutoencoder(29, rngs=nnx.Rngs(3))
    bounds = {
        "forward_encoder": 50**-0.5,
        "backward_encoder": 50**-0.5,
        "decoder": 50**-0.5,
        "ic_linear": 100**-0.5,
        "readout": 50**-0.5,
    }
    for name, bound in bounds.items():
        values = [np.ravel(leaf) for leaf in jax.tree.leaves(nnx.state(getattr(net, name)))]
        assert all(np.ptp(value) > 0 for value in values)
        drawn = np.concatenate(values)
        assert np.abs(drawn).max() <= bound
        assert np.abs(drawn).max() > 0.99 * bound
        # A uniform distribution's spread, within four standard errors or so.
        assert drawn.std() == pytest.approx(bound / 3**0.5, rel=2.0 / drawn.size**0.5)
        assert abs(drawn.mean()) < 4 * bound / (3 * drawn.size) ** 0.5


def test_published_size():
    """38,629 weights: the published 38,779 less the decoder's 150 that multiply a constant 0."""
    weights = jax.tree.leaves(nnx.state(SequentialAutoencoder(29, rngs=nnx.Rngs(0))))
    assert sum(w.size for w in weights) == 38_629


@pytest.mark.parametrize("settings", [{}, {"mask_input": True, "input_scaling": True}])
@pytest.mark.parametrize("padding", [1, 40])
def test_a_trial_does_not_depend_on_the_padding_behind_it(batch, settings, padding):
    counts, observed = batch
    lengths = jnp.array([BINS, 3, 5])
    observed = observed & (np.arange(BINS)[:, None] < lengths[:, None, None])
    wider = [(0, 0), (0, padding), (0, 0)]
    net = model(**settings)
    padded = net(jnp.pad(counts, wider), jnp.pad(observed, wider), lengths)
    for i, length in enumerate(lengths):
        alone = net(counts[i : i + 1, :length], observed[i : i + 1, :length])
        np.testing.assert_allclose(padded.ic[i], alone.ic[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            padded.lograte[i, :length], alone.lograte[0], rtol=1e-5, atol=1e-6
        )
    full = net(counts, observed, jnp.full(TRIALS, BINS)).lograte
    np.testing.assert_allclose(full, net(counts, observed).lograte, rtol=1e-5, atol=1e-6)


def loss_gradient(bins, **settings):
    """A compiled gradient over all weights, and its arguments."""
    structure, params = nnx.split(SequentialAutoencoder(4, rngs=nnx.Rngs(0), **settings))
    counts = jnp.asarray(np.random.default_rng(1).poisson(1.0, (3, bins, 4)))

    def loss(params):
        lograte = nnx.merge(structure, params)(counts, counts < 2).lograte
        return poisson_nll(lograte, counts, counts < 2)

    return jax.jit(jax.grad(loss)).lower(params).compile(), params


@pytest.mark.parametrize("segment", [1, 4, 9, 100])
def test_segments_change_no_gradient(segment):
    (whole, params), (segments, _) = (loss_gradient(9, segment=s) for s in (None, segment))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        whole(params),
        segments(params),
    )


def test_segments_spare_memory():
    whole, segments = (
        loss_gradient(1000, segment=s)[0].memory_analysis().temp_size_in_bytes for s in (None, 30)
    )
    assert segments < whole / 3


def test_refinement_follows_the_observed_counts_of_each_trial_alone(batch):
    counts, observed = batch
    plain, refining = model(), model(refinement_steps=10)
    said, refined = plain.infer(counts, observed), refining.infer(counts, observed)
    jax.tree.map(np.testing.assert_array_equal, said, plain(counts, observed))
    jax.tree.map(np.testing.assert_array_equal, said, refining(counts, observed))  # in training
    for trial in range(TRIALS):
        one = slice(trial, trial + 1)
        before, after = (
            poisson_nll(inference.lograte[one], counts[one], observed[one])
            for inference in (said, refined)
        )
        assert after < before
        alone = refining.infer(counts[one], observed[one])
        np.testing.assert_allclose(alone.ic, refined.ic[one], rtol=1e-4, atol=1e-5)
    spoiled = jnp.where(observed, counts, jnp.nan)
    np.testing.assert_array_equal(refining.infer(spoiled, observed).ic, refined.ic)


def test_refinement_reaches_the_most_probable_initial_condition(batch):
    """Where the gradient of the posterior vanishes; a narrow prior keeps it at the encoder's."""
    counts, observed = batch
    scale = 0.3
    net = model(refinement_steps=1000, refinement_scale=scale)
    ic = net.encode(counts, observed)
    refined = net.refine(ic, counts, observed)

    def negative_log_posterior(x):
        lograte = net.readout(net.decode(x, BINS))
        nll = jnp.where(observed, jnp.exp(lograte) - counts * lograte, 0).sum()
        return nll + (((x - ic) / scale) ** 2).sum() / 2

    assert np.abs(jax.grad(negative_log_posterior)(ic)).max() > 0.5
    np.testing.assert_allclose(jax.grad(negative_log_posterior)(refined), 0, atol=0.02)
    narrow = model(refinement_steps=1000, refinement_scale=1e-3)
    np.testing.assert_allclose(narrow.refine(ic, counts, observed), ic, atol=1e-3)


@pytest.mark.parametrize(("segment", "lengths"), [(None, None), (3, [8, 3, 5])])
def test_a_gpu_computes_what_a_cpu_does(batch, segment, lengths, monkeypatch):
    structure, weights = nnx.split(model(segment=segment))
    lengths = None if lengths is None else jnp.array(lengths)

    def loss_and_gradient(by_bin):
        monkeypatch.setattr(gru, "_by_bin", lambda: by_bin)

        def loss(weights):
            return poisson_nll(nnx.merge(structure, weights)(*batch, lengths).lograte, *batch)

        return jax.jit(jax.value_and_grad(loss))(weights)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        loss_and_gradient(True),
        loss_and_gradient(False),
    )


@pytest.mark.parametrize("size", [1, 2, 64])
@pytest.mark.parametrize("lengths", [None, [8, 3, 5]])
def test_inference_in_batches_is_that_of_all_trials(batch, size, lengths):
    """Batches that come out even and ones that do not, shared out among two devices."""
    counts, observed = map(np.asarray, batch)
    lengths = None if lengths is None else np.array(lengths)
    net = model(refinement_steps=0 if lengths is not None else 2)
    inferred = evaluation.infer(net, counts, observed, size, lengths=lengths)
    whole = net.infer(*batch, None if lengths is None else jnp.asarray(lengths))
    for trial, end in enumerate([BINS] * TRIALS if lengths is None else lengths):
        np.testing.assert_allclose(
            inferred.lograte[trial, :end], whole.lograte[trial, :end], rtol=1e-5, atol=1e-6
        )
        assert np.isnan(inferred.lograte[trial, end:]).all()
