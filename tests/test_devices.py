"""Several devices: models placed on them, and batches shared by them."""

import json

import jax
import pytest
from conftest import call, smoke

from sbtt_jax.errors import InputError
from sbtt_jax.run.train import train
from sbtt_jax.training import devices


@pytest.mark.slow
def test_devices_that_share_batches_find_the_numbers_of_one():
    done = call("tests/shared_batches.py", timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"plain, 2 devices", "ragged, 4 devices"}
    for case, (losses, weights) in found.items():
        assert max(losses, weights) < 1e-5, case


def test_models_get_the_devices_that_divide_them():
    all_ = len(jax.devices())
    for asked, shape in (((2 * all_,), (all_, 1)), ((1,), (1, 1)), ((4, all_), (1, all_))):
        assert devices.model_mesh(*asked).devices.shape == shape


def test_devices_must_be_there_and_divide_a_batch(tmp_path):
    with pytest.raises(InputError, match=r"is 7; it must divide train\.batch_size, which is 24"):
        smoke(train={"data_devices": 7})
    with pytest.raises(InputError, match=r"is 500, and JAX has \d+ x .*; give at most \d"):
        train(smoke(train={"data_devices": 500, "batch_size": 1000}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["", "--xla_backend_extra_options=xla_cpu_optimize_for_size"])
def test_flags_that_the_user_gives_the_compiler_take_precedence(monkeypatch, given):
    """In a process of its own, since flags are read once."""
    monkeypatch.setenv("XLA_FLAGS", given)
    script = "import os, jax; from sbtt_jax.training import devices; devices.use_cores(2); "
    script += "print(len(jax.devices()), os.environ['XLA_FLAGS'])"
    done = call("-c", script)
    assert done.returncode == 0, done.stderr
    extra = [flag for flag in done.stdout.split() if flag.startswith("--xla_backend_extra_options")]
    assert extra == [given or devices.PLAIN_LOOPS]


def test_how_long_a_program_compiles_that_is_kept_is_for_the_user_to_say(monkeypatch):
    name, found = "jax_persistent_cache_min_compile_time_secs", []
    before = getattr(jax.config, name)
    for given in (True, False):
        if given:
            monkeypatch.setenv(name.upper(), str(before))
        else:
            monkeypatch.delenv(name.upper())
        devices.cache_compiled()
        found.append(getattr(jax.config, name))
    jax.config.update(name, before)
    assert found == [before, 0.5]
