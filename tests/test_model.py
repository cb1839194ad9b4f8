from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import close, identical
from flax import nnx

from sbtt_jax.model import gru
from sbtt_jax.model.autoencoder import SequentialAutoencoder
from sbtt_jax.model.inference import infer, infer_all, refine
from sbtt_jax.observations import POISSON, masked_nll

TRIALS, BINS, NEURONS = 3, 8, 6
PLAIN_AND_NOT = pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask_input": True, "input_scaling": True, "latent_size": 2},
        {"inferred_inputs": 3},
    ],
)

near = partial(close, rtol=1e-5, atol=1e-6)
run = nnx.jit(lambda net, *batch, **how: net(*batch, **how))
run_inference = nnx.jit(infer)


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    counts = jnp.asarray(rng.poisson(1.0, (TRIALS, BINS, NEURONS)), jnp.float32)
    return counts, jnp.asarray(rng.random(counts.shape) < 0.5)


@cache
def model(**settings):
    settings = {"encoder_size": 5, "decoder_size": 4, **settings}
    return SequentialAutoencoder(NEURONS, **settings, rngs=nnx.Rngs(0))


def mean_nll(output, counts, observed):
    nll, points = masked_nll(POISSON, output, counts, observed)
    return nll / points


@pytest.mark.parametrize(
    ("settings", "decoder", "latent"),
    [({}, 4, 4), ({"encoder_size": 9, "decoder_size": 3}, 3, 3), ({"latent_size": 2}, 4, 2)],
)
def test_sizes_are_free(batch, settings, decoder, latent):
    inference = jax.eval_shape(model(**settings), *batch)
    assert inference.output.shape == (TRIALS, BINS, NEURONS)
    assert inference.latent.shape == (TRIALS, BINS, latent)
    assert inference.ic.shape == (TRIALS, decoder)


@PLAIN_AND_NOT
def test_counts_at_missing_points_are_never_read(batch, settings):
    counts, observed = batch
    net = model(**settings)
    spoiled = jnp.where(observed, counts, jnp.nan)
    identical(run(net, counts, observed), run(net, spoiled, observed))


def test_every_observed_point_is_read(batch):
    net, (counts, observed) = model(), batch
    jacobian = jax.grad(lambda counts: net.encode(counts, observed).ic.sum())(counts)
    np.testing.assert_array_equal(np.asarray(jacobian) != 0, observed)


def test_the_initial_state_is_no_latent_and_all_that_the_decoder_gets(batch):
    net = model()
    ic = net.encode(*batch).ic
    latent = net.decode(ic, BINS)
    assert not np.allclose(latent[:, 0], ic)
    np.testing.assert_allclose(net.decode(latent[:, 2], 3), latent[:, 3:6], atol=1e-6)


def test_inferred_inputs_drive_the_decoder(batch):
    net = model(inferred_inputs=3)
    inferred = run(net, *batch)
    assert inferred.inputs.shape == (TRIALS, BINS, 3)
    changed = inferred.inputs.at[:, 4].add(1.0)
    latent = net.decode(inferred.ic, BINS, changed)
    close(latent[:, :4], inferred.latent[:, :4], rtol=1e-6, atol=1e-6)
    assert (np.abs(latent - inferred.latent)[:, 4:].max((1, 2)) > 1e-3).all()


def test_dropout_only_in_training(batch):
    net = model(dropout=0.5)
    still = run(net, *batch).output
    identical(still, run(net, *batch).output)
    first, second = (run(net, *batch, rngs=nnx.Rngs(seed)).output for seed in (1, 2))
    assert not np.allclose(first, still)
    assert not np.allclose(first, second)
    identical(run(model(dropout=0.0), *batch, rngs=nnx.Rngs(1)).output, still)


def test_scaled_inputs_do_not_depend_on_how_much_was_observed():
    counts = jnp.ones((1, BINS, NEURONS))
    few = jnp.zeros(counts.shape, bool).at[..., ::3].set(True)  # a third of the neurons
    scaling, plain = (model(input_scaling=scaled) for scaled in (True, False))
    near(scaling.encode(counts, few).ic, plain.encode(3 * counts, few).ic)


def test_the_mask_tells_a_silent_sample_from_a_missing_one():
    counts = jnp.zeros((1, BINS, NEURONS))
    all_seen = jnp.ones(counts.shape, bool)
    some_seen = all_seen.at[:, :, 0].set(False)
    for net in (model(), model(mask_input=True)):
        same = np.allclose(net.encode(counts, all_seen).ic, net.encode(counts, some_seen).ic)
        assert same != net.mask_input


def test_weights_are_as_many_as_published_and_start_as_in_pytorch():
    net = SequentialAutoencoder(29, rngs=nnx.Rngs(3))
    # The published 38,779 without the decoder's 150 that multiply a constant 0.
    assert sum(w.size for w in jax.tree.leaves(nnx.state(net))) == 38_629
    for name in ("forward_encoder", "backward_encoder", "decoder", "readout", "ic_linear"):
        bound = 100**-0.5 if name == "ic_linear" else 50**-0.5
        values = [np.ravel(leaf) for leaf in jax.tree.leaves(nnx.state(getattr(net, name)))]
        assert all(np.ptp(value) > 0 for value in values)
        drawn = np.concatenate(values)
        assert 0.99 * bound < np.abs(drawn).max() <= bound
        # A uniform distribution's spread, within four standard errors or so.
        assert drawn.std() == pytest.approx(bound / 3**0.5, rel=2.0 / drawn.size**0.5)
        assert abs(drawn.mean()) < 4 * bound / (3 * drawn.size) ** 0.5


@PLAIN_AND_NOT
def test_a_trial_does_not_depend_on_the_padding_behind_it(batch, settings):
    counts, observed = batch
    lengths = jnp.array([BINS, 3, 5])
    observed = observed & (np.arange(BINS)[:, None] < lengths[:, None, None])
    net = model(**settings)
    alone = [run(net, counts[i, None, :n], observed[i, None, :n]) for i, n in enumerate(lengths)]
    for padding in (1, 40):
        wider = [(0, 0), (0, padding), (0, 0)]
        padded = run(net, jnp.pad(counts, wider), jnp.pad(observed, wider), lengths)
        for i, (one, length) in enumerate(zip(alone, lengths, strict=True)):
            near((padded.ic[i], padded.output[i, :length]), (one.ic[0], one.output[0]))
    near(run(net, counts, observed, jnp.full(TRIALS, BINS)), run(net, counts, observed))


@cache
def loss_gradient(bins, **settings):
    """A compiled gradient over all weights, and its arguments."""
    structure, params = nnx.split(SequentialAutoencoder(4, rngs=nnx.Rngs(0), **settings))
    counts = jnp.asarray(np.random.default_rng(1).poisson(1.0, (3, bins, 4)))

    def loss(params):
        output = nnx.merge(structure, params)(counts, counts < 2).output
        return mean_nll(output, counts, counts < 2)

    return jax.jit(jax.grad(loss)).lower(params).compile(), params


@pytest.mark.parametrize("segment", [1, 4, 9, 100])
def test_segments_change_no_gradient(segment):
    (whole, params), (segments, _) = (loss_gradient(9, segment=s) for s in (None, segment))
    close(whole(params), segments(params), rtol=1e-5, atol=1e-7)


def test_segments_spare_memory():
    programs = (loss_gradient(1000, segment=segment)[0] for segment in (None, 30))
    whole, segments = (p.memory_analysis().temp_size_in_bytes for p in programs)
    assert segments < whole / 3


def test_refinement_follows_the_observed_counts_of_each_trial_alone(batch):
    counts, observed = batch
    plain, refining = model(), model(refinement_steps=10)
    encoded, refined = (run_inference(net, *batch) for net in (plain, refining))
    identical(encoded, run(plain, *batch))
    identical(encoded, run(refining, *batch))  # a call, as in training, does not refine
    for trial in range(TRIALS):
        one = slice(trial, trial + 1)
        before, after = (
            mean_nll(inference.output[one], counts[one], observed[one])
            for inference in (encoded, refined)
        )
        assert after < before
        alone = run_inference(refining, counts[one], observed[one])
        close(alone.ic, refined.ic[one], rtol=1e-4, atol=1e-5)
    spoiled = jnp.where(observed, counts, jnp.nan)
    identical(run_inference(refining, spoiled, observed), refined)


def test_refinement_reaches_the_most_probable_initial_condition(batch):
    """Where the slope of the posterior is zero; a narrow prior keeps the encoder's estimate."""
    (counts, observed), scale = batch, 0.3
    net = model(refinement_steps=1000, refinement_scale=scale)
    code = net.encode(counts, observed)
    ic, refined = code.ic, refine(net, code, counts, observed).ic

    @jax.jit
    @jax.grad
    def slope(x):
        output = net.readout(net.decode(x, BINS))
        nll = jnp.where(observed, jnp.exp(output) - counts * output, 0).sum()
        return nll + (((x - ic) / scale) ** 2).sum() / 2

    assert np.abs(slope(ic)).max() > 0.5
    np.testing.assert_allclose(slope(refined), 0, atol=0.02)
    narrow = model(refinement_steps=1000, refinement_scale=1e-3)
    np.testing.assert_allclose(refine(narrow, code, counts, observed).ic, ic, atol=1e-3)


@pytest.mark.parametrize(("segment", "lengths"), [(None, None), (3, [8, 3, 5])])
@pytest.mark.parametrize("inputs", [0, 3])
def test_a_gpu_computes_what_a_cpu_does(batch, segment, lengths, inputs, monkeypatch):
    structure, weights = nnx.split(model(segment=segment, inferred_inputs=inputs))
    lengths = None if lengths is None else jnp.array(lengths)

    def loss_and_gradient(by_bin):
        monkeypatch.setattr(gru, "_by_bin", lambda: by_bin)

        def loss(weights):
            return mean_nll(nnx.merge(structure, weights)(*batch, lengths).output, *batch)

        return jax.jit(jax.value_and_grad(loss))(weights)

    near(loss_and_gradient(True), loss_and_gradient(False))


@pytest.mark.parametrize("size", [1, 2, 64])
@pytest.mark.parametrize("lengths", [None, [8, 3, 5]])
def test_inference_in_batches_is_that_of_all_trials(batch, size, lengths):
    """Batches of equal size and a shorter last one, divided among two devices."""
    net = model(refinement_steps=0 if lengths else 2)
    lengths = None if lengths is None else np.array(lengths)
    inferred = infer_all(net, *map(np.asarray, batch), lengths, batch_size=size)
    whole = run_inference(net, *batch, None if lengths is None else jnp.asarray(lengths))
    for trial, end in enumerate([BINS] * TRIALS if lengths is None else lengths):
        near(inferred.output[trial, :end], whole.output[trial, :end])
        assert np.isnan(inferred.output[trial, end:]).all()
