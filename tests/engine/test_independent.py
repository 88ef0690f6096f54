"""Two motion models, one per half-set: they share nothing, and agree where there is a motion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine.prepared import Prepared, one_moving_arm

from flex_job.independent import Agreement, agreement, half_stack, with_latents_of_all
from flex_job.model import FlexModel
from flex_job.train import train
from flex_job.turned_flow import TurnedFlow
from flex_job.validation import simulate_rigid
from job_specs.parameter import settled
from job_specs.parameters import TrainParameters

QUICK = settled(TrainParameters(latent_dims=1, epochs=4, fixed_latent_epochs=1, map_every=2, batch=100, flow_units=16))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """1,200 particles of 32 px with one moving arm."""
    return one_moving_arm(tmp_path_factory.mktemp("independent"), 1200, 0.2)


def models_of(data: Prepared) -> list[FlexModel]:
    whole = data.trainer(QUICK)
    found = []
    for half in (1, 2):
        model = train(data.trainer(QUICK, half_stack(data.stack, half, 0)))
        found.append(with_latents_of_all(whole, model, np.flatnonzero(data.stack.halves == half)))
    return found


@pytest.fixture(scope="module")
def models(prepared: Prepared) -> list[FlexModel]:
    return models_of(prepared)


def test_a_selection_holds_the_same_images(prepared: Prepared) -> None:
    stack = prepared.stack
    index = np.flatnonzero(stack.halves == 2)
    some = half_stack(stack, 2, 0)
    again = some.select(np.array([4, 1]))
    for ours, theirs in ((some.batch(np.array([1, 7])), index[[1, 7]]), (again.batch(np.array([0, 1])), index[[4, 1]])):
        whole = stack.batch(theirs)
        for name in ("data", "transfer", "projections", "origins_px"):
            assert torch.equal(getattr(ours, name), getattr(whole, name))
    assert set(some.halves.tolist()) == {1, 2} and abs(int((some.halves == 1).sum()) - len(some) / 2) <= 1


def test_the_models_agree_on_a_motion(models: list[FlexModel]) -> None:
    found = agreement(*models)
    assert found.correlation > 0.9
    assert found.mean_error_A < 0.4 * found.mean_motion_A
    assert f"{found.mean_error_A:.2f} A" in str(found)
    # Negative control: latents of one model go to the wrong particles.
    mixed = replace(models[1], latents=np.roll(models[1].latents, 1, axis=0))
    wrong = agreement(models[0], mixed)
    assert abs(wrong.correlation) < 0.2 and wrong.mean_error_A > 2 * found.mean_error_A


def test_they_do_not_agree_where_there_is_none(prepared: Prepared, models: list[FlexModel]) -> None:
    trainer = prepared.trainer(QUICK)
    level = trainer.levels.level(prepared.map, QUICK.band_end)
    exact = TurnedFlow(None, prepared.mesh, torch.zeros(6, 6))
    path = prepared.folder / "rigid.f16"
    stack = simulate_rigid(prepared.stack, level, exact, path, seed=0, batch_size=200)
    still: Agreement = agreement(*models_of(prepared._replace(stack=stack)))
    assert still.mean_motion_A < 0.3 * agreement(*models).mean_motion_A
    assert still.correlation < 0.6


def test_one_half_set_does_not_touch_the_other_s_model(prepared: Prepared, models: list[FlexModel]) -> None:
    """The model of half-set 1 is the same, to the last bit, when half-set 2 holds nothing but noise."""
    stack = prepared.stack
    images = np.fromfile(stack.path, np.float16).reshape(len(stack), -1)
    second = stack.halves == 2
    images[second] = np.random.default_rng(0).normal(size=(second.sum(), images.shape[1]))
    path = prepared.folder / "spoiled.f16"
    images.tofile(path)
    model = train(prepared.trainer(QUICK, half_stack(replace(stack, path=path), 1, 0)))
    for ours, theirs in zip(model.flow.parameters(), models[0].flow.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    np.testing.assert_array_equal(model.latents, models[0].latents[~second])
    np.testing.assert_array_equal(model.map.data, models[0].map.data)


def test_agreement_of_a_model_with_itself_and_with_its_double(models: list[FlexModel]) -> None:
    same = agreement(models[0], models[0])
    assert same.mean_error_A == 0 and same.correlation == pytest.approx(1)
    assert same.error_A.shape == same.motion_A.shape == (len(models[0].mesh.vertices_A),)
