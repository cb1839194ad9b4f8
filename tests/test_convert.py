import sys

import jax
import numpy as np
import pytest
from flax import nnx

from sbtt_jax import convert, evaluation
from sbtt_jax.errors import InputError
from sbtt_jax.grid import ModelKey
from sbtt_jax.model import SequentialAutoencoder


def published_names(neurons=4, encoder=3, decoder=5, seed=0):
    """Random arrays with the names and shapes of the published program's weights."""
    rng = np.random.default_rng(seed)
    shapes = {}
    for name, inputs, size in (
        ("encoder.{}_l0", neurons, encoder),
        ("encoder.{}_l0_reverse", neurons, encoder),
        ("decoder.{}_l0", 1, decoder),
    ):
        shapes[name.format("weight_ih")] = (3 * size, inputs)
        shapes[name.format("weight_hh")] = (3 * size, size)
        shapes[name.format("bias_ih")] = shapes[name.format("bias_hh")] = (3 * size,)
    for name, inputs, outputs in (
        ("ic_linear", 2 * encoder, decoder),
        ("readout", decoder, neurons),
    ):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_weights_there_and_back_are_the_same():
    weights = published_names()
    back = convert.to_pytorch(convert.from_pytorch(weights))
    assert back.keys() == weights.keys()
    assert not back.pop("decoder.weight_ih_l0").any()  # it has no effect, and no counterpart
    for name, value in back.items():
        np.testing.assert_array_equal(value, weights[name], err_msg=name)


def test_model_back_and_there_is_the_same():
    model = SequentialAutoencoder(4, encoder_size=3, decoder_size=5, rngs=nnx.Rngs(1))
    again = convert.from_pytorch(convert.to_pytorch(model))
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(again))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("readout.bias"), "missing: readout.bias"),
        (lambda w: w.update({"extra.weight": np.zeros(1)}), "not known: extra.weight"),
        (
            lambda w: w.update({"encoder.bias_hh_l0": np.zeros(6)}),
            r"encoder.bias_hh_l0 is \(6,\); the other weights ask for \(9,\)",
        ),
    ],
)
def test_weights_of_another_model_are_refused(change, said):
    weights = published_names()
    change(weights)
    with pytest.raises(InputError, match=said):
        convert.from_pytorch(weights)


def test_parts_that_pytorch_has_not_are_refused():
    model = SequentialAutoencoder(4, latent_size=2, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match="latent_size"):
        convert.to_pytorch(model)


def test_a_converted_run_is_evaluated_with_its_weights(tmp_path):
    models = {b: convert.from_pytorch(published_names(29, seed=b)) for b in (29, 5)}
    convert.write_run(tmp_path / "run", {b: (m, 90 + b) for b, m in models.items()}, dropout=0.1)
    trained = evaluation.restore(tmp_path / "run")
    assert [(key.bandwidth, t.epoch) for key, t in trained.items()] == [(29, 119), (5, 95)]
    for key, (model, _) in trained.items():
        jax.tree.map(
            np.testing.assert_array_equal, nnx.state(model), nnx.state(models[key.bandwidth])
        )
    scores, _ = evaluation.evaluate(tmp_path / "run")
    assert [s.bandwidth for s in scores] == [29, 5]
    with pytest.raises(InputError, match="holds a run already"):
        convert.write_run(tmp_path / "run", {3: (models[5], 0)}, dropout=0.1)


def test_no_checkpoint_is_said(tmp_path):
    with pytest.raises(InputError, match="name at least one"):
        convert.main(["--out", str(tmp_path / "run")])


def test_without_pytorch_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match="pip install torch"):
        convert.read_checkpoint("model.ckpt")


def lightning(path, **changes):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = {k: torch.tensor(v) for k, v in published_names(29, 6, 7).items()}
    checkpoint = {
        "epoch": 41,
        "global_step": 840,
        "state_dict": state,
        "hyper_parameters": {"dropout": 0.2, "learning_rate": 1e-3},
        "datamodule_hyper_parameters": {"bandwidth": 5},
    }
    torch.save(checkpoint | changes, path)
    return path


def test_a_lightning_checkpoint_becomes_a_run(tmp_path):
    path = lightning(tmp_path / "model.ckpt")
    assert convert.main([str(path), "--out", str(tmp_path / "run")]) == 0
    trained = evaluation.restore(tmp_path / "run")
    assert list(trained) == [ModelKey(5, 0)]
    model, epoch = trained[ModelKey(5, 0)]
    assert epoch == 41
    assert model.dropout.rate == 0.2
    back = convert.to_pytorch(model)
    for name, value in published_names(29, 6, 7).items():
        if name != convert.WITHOUT_EFFECT:
            np.testing.assert_array_equal(back[name], value)


def test_bandwidths_can_be_named(tmp_path):
    path = lightning(tmp_path / "model.ckpt", datamodule_hyper_parameters={})
    with pytest.raises(InputError, match="does not say its bandwidth; add --bandwidths"):
        convert.main([str(path), "--out", str(tmp_path / "run")])
    arguments = [str(path), "--bandwidths", "10", "--out", str(tmp_path / "run")]
    assert convert.main(arguments) == 0
    assert list(evaluation.restore(tmp_path / "run")) == [ModelKey(10, 0)]


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, capsys):
    path = lightning(tmp_path / "trap.ckpt", hyper_parameters=Trap())
    with pytest.raises(InputError, match=r"trap\.ckpt: not a checkpoint that can be read safely"):
        convert.main([str(path), "--out", str(tmp_path / "run")])
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 cut short"])
def test_damaged_checkpoints_are_refused(content, tmp_path):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.ckpt"):
        convert.main([str(path), "--out", str(tmp_path / "run")])
