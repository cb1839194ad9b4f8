import sys

import numpy as np
import pytest
from conftest import Trap, identical
from flax import nnx

from benchmarks.parity import to_pytorch
from sbtt_jax import convert
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.model.autoencoder import SequentialAutoencoder
from sbtt_jax.run.evaluate import evaluate
from sbtt_jax.run.restore import restore


def published_names(neurons=4, encoder=3, decoder=5, seed=0):
    """Random arrays with the names and shapes of the published program's weights."""
    grus = {
        "encoder.{}_l0": (neurons, encoder),
        "encoder.{}_l0_reverse": (neurons, encoder),
        "decoder.{}_l0": (1, decoder),
    }
    shapes = {"ic_linear.weight": (decoder, 2 * encoder), "ic_linear.bias": (decoder,)}
    shapes |= {"readout.weight": (neurons, decoder), "readout.bias": (neurons,)}
    for name, (inputs, size) in grus.items():
        parts = {"weight_ih": (inputs,), "weight_hh": (size,), "bias_ih": (), "bias_hh": ()}
        shapes |= {name.format(part): (3 * size, *shape) for part, shape in parts.items()}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def assert_weights_of(model, weights):
    """All of them, but those without effect, which have no counterpart and come back as zeros."""
    back = to_pytorch(model)
    assert back.keys() == weights.keys()
    without_effect = {"decoder.weight_ih_l0": np.zeros_like(weights["decoder.weight_ih_l0"])}
    for name, value in {**weights, **without_effect}.items():
        np.testing.assert_array_equal(back[name], value, err_msg=name)


def test_there_and_back_is_the_same():
    weights = published_names()
    assert_weights_of(convert.from_pytorch(weights), weights)
    model = SequentialAutoencoder(4, encoder_size=3, decoder_size=5, rngs=nnx.Rngs(1))
    again = convert.from_pytorch(to_pytorch(model))
    identical(nnx.state(model), nnx.state(again))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"readout.bias": None}, "missing: readout.bias"),
        ({"extra.weight": np.zeros(1)}, "unknown: extra.weight"),
        ({"encoder.bias_hh_l0": np.zeros(6)}, r"bias_hh_l0 is \(6,\); the other .* for \(9,\)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_weights_of_another_model_are_refused(change, said):
    weights = {n: w for n, w in (published_names() | change).items() if w is not None}
    with pytest.raises(InputError, match=said):
        convert.from_pytorch(weights)


@pytest.mark.slow
def test_a_converted_run_is_evaluated_with_its_weights(tmp_path):
    weights = {b: published_names(29, seed=b) for b in (29, 5)}
    models = {b: convert.from_pytorch(w) for b, w in weights.items()}
    convert.write_run(tmp_path / "run", {b: (m, 90 + b) for b, m in models.items()}, dropout=0.1)
    trained = restore(tmp_path / "run")
    assert [(key.bandwidth, one.epoch) for key, one in trained.items()] == [(29, 119), (5, 95)]
    for key, one in trained.items():
        assert_weights_of(one.model, weights[key.bandwidth])
    assert [row["bandwidth"] for row in evaluate(tmp_path / "run").models] == [29, 5]
    with pytest.raises(InputError, match="holds a run already"):
        convert.write_run(tmp_path / "run", {3: (models[5], 0)}, dropout=0.1)


def test_without_pytorch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install torch"):
        convert.read_checkpoint("model.ckpt")


def lightning(path, **changes):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    checkpoint = {
        "epoch": 41,
        "global_step": 840,
        "state_dict": {k: torch.tensor(v) for k, v in published_names(29, 6, 7).items()},
        "hyper_parameters": {"dropout": 0.2, "learning_rate": 1e-3},
        "datamodule_hyper_parameters": {"bandwidth": 5},
    }
    torch.save(checkpoint | changes, path)
    return str(path)


@pytest.mark.parametrize("named", [False, True])
def test_a_lightning_checkpoint_becomes_a_run(named, tmp_path):
    out, given = str(tmp_path / "run"), ["--bandwidths", "10"] if named else []
    changes = {"datamodule_hyper_parameters": {}} if named else {}
    path = lightning(tmp_path / "model.ckpt", **changes)
    if named:
        with pytest.raises(InputError, match="does not state its bandwidth; add --bandwidths"):
            convert.main([path, "--out", out])
    assert convert.main([path, *given, "--out", out]) == 0
    ((key, one),) = restore(out).items()
    assert (key, one.epoch, one.model.dropout) == (ModelKey(10 if named else 5, 0), 41, 0.2)
    assert_weights_of(one.model, published_names(29, 6, 7))


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", b"PK\x03\x04 cut short", Trap()])
def test_what_is_no_checkpoint_is_refused_and_not_executed(content, tmp_path):
    with pytest.raises(InputError, match="name at least one"):
        convert.main(["--out", "run"])
    path = tmp_path / "wrong.ckpt"
    lightning(path, hyper_parameters=content)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        path.unlink()
    with pytest.raises(InputError, match=r"wrong\.ckpt: (not a checkpoint that can be|No such)"):
        convert.main([str(path), "--out", "run"])
