"""Training the real small icon CLIP on a few icons: exact, resumable, loud."""

import contextlib
import dataclasses
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from mma_adapter import FewShotClassifier, TrainConfig, disable_mma, fit, inject_mma
from mma_adapter.data import Sample, from_processor
from mma_adapter.data.transforms import TrainTransform
from mma_adapter.demo import load_icon_clip, load_icons
from mma_adapter.errors import ConfigError, DataError, TrainingError
from mma_adapter.evaluation import Evaluation, evaluate
from mma_adapter.pictures import EpochBatches, Pictures, collate, keep_decoded
from mma_adapter.training import TrainingInterrupted, check_progress

NAMES = ["airplane", "alarm clock", "alien"]
QUICK = TrainConfig(
    epochs=2,
    batch_size=4,
    lr=0.5,
    template="an icon of a {}.",
    check_progress=False,
    num_workers=0,
)
STEPS_PER_EPOCH = 3  # 14 pictures in batches of 4, the rest dropped


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    """Fourteen icons of three classes."""
    icons = {name: [i for i in load_icons() if i.classname == name][:5] for name in NAMES}
    return [
        Sample(Path(f"{icon.key}.png"), label, name, icon.png)
        for label, name in enumerate(NAMES)
        for icon in icons[name]
    ][:14]


def fresh(**settings: Any) -> nn.Module:
    return inject_mma(load_icon_clip()[0], **{"start_layer": 9, "seed": 0, **settings})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.mma.state_dict().items()}  # pyright: ignore


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def uninterrupted(samples: list[Sample]) -> dict[str, Tensor]:
    """Weights after the quick run."""
    model = fresh()
    fit(model, samples, NAMES, QUICK, callbacks=())
    return weights(model)


class At(transformers.TrainerCallback):
    """Does something at the end of one step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.action()


def interrupt() -> None:
    raise KeyboardInterrupt


def test_training_lifts_training_accuracy_and_fills_the_result(samples: list[Sample]) -> None:
    model = fresh(start_layer=5)
    # Names that say nothing, and hardly any augmentation: the adapter has to learn what they mean.
    names = ["first", "second", "third"]
    config = dataclasses.replace(
        QUICK, epochs=6, lr=0.1, check_progress=True, batch_size=7, crop_scale=(0.8, 1), flip=False
    )
    before = weights(model)

    result = fit(model, samples, names, config, eval_samples=samples[::2], callbacks=())

    assert result.train.accuracy_pct > result.zero_shot_train.accuracy_pct + 20  # pyright: ignore
    assert not equal(before, weights(model))
    assert [r.step for r in result.history] == list(range(1, 13))
    assert [r.epoch for r in result.history[:4]] == [0.5, 1.0, 1.5, 2.0]
    rates = [r.learning_rate for r in result.history[::2]]
    assert rates == pytest.approx([0.1 * (1 + np.cos(np.pi * e / 6)) / 2 for e in range(6)])
    assert result.steps == 12
    assert result.seconds > 0
    assert result.eval.total == 7  # pyright: ignore
    assert model.mma.config.classnames == tuple(names)  # pyright: ignore
    assert model.mma.config.template == "an icon of a {}."  # pyright: ignore


def test_zero_shot_figures_are_those_of_the_model_without_adapter(samples: list[Sample]) -> None:
    model, tokenizer, processor = load_icon_clip()
    classifier = FewShotClassifier(model, tokenizer, NAMES, QUICK.template)
    expected = evaluate(classifier, samples, from_processor(processor)[1])

    result = fit(fresh(), samples, NAMES, QUICK, eval_samples=samples, callbacks=())

    assert np.array_equal(result.zero_shot_eval.predictions, expected.predictions)  # pyright: ignore
    with disable_mma(result.classifier.model):
        again = evaluate(result.classifier, samples, from_processor(processor)[1])
    assert np.array_equal(again.predictions, expected.predictions)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    samples: list[Sample], uninterrupted: dict[str, Tensor]
) -> None:
    for seed, same in ((1, True), (2, False)):
        torch.manual_seed(seed + 10)  # must not matter
        model = fresh()
        fit(model, samples, NAMES, dataclasses.replace(QUICK, seed=seed), callbacks=())
        assert equal(weights(model), uninterrupted) is same


def test_workers_and_memory_for_pictures_change_nothing(
    samples: list[Sample], uninterrupted: dict[str, Tensor]
) -> None:
    model = fresh()
    config = dataclasses.replace(QUICK, num_workers=2, cache_bytes=3 * 48 * 48 * 4)
    fit(model, samples, NAMES, config, callbacks=())
    assert equal(weights(model), uninterrupted)


@pytest.mark.parametrize("step", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH])
def test_an_interrupted_run_resumes_to_the_same_weights(
    samples: list[Sample], uninterrupted: dict[str, Tensor], tmp_path: Path, step: int
) -> None:
    with pytest.raises(TrainingInterrupted, match="resume=True") as error:
        fit(fresh(), samples, NAMES, QUICK, output_dir=tmp_path, callbacks=[At(step, interrupt)])
    assert error.value.checkpoint == tmp_path / "checkpoints" / f"checkpoint-{step}"

    model = fresh(seed=7)  # the checkpoint decides, not the fresh weights
    result = fit(model, samples, NAMES, QUICK, output_dir=tmp_path, resume=True, callbacks=())

    assert equal(weights(model), uninterrupted)
    assert [r.step for r in result.history] == list(range(1, 2 * STEPS_PER_EPOCH + 1))
    assert list(tmp_path.iterdir()) == []  # a finished run leaves no checkpoints


def test_control_c_finishes_the_step_and_saves(
    samples: list[Sample], uninterrupted: dict[str, Tensor], tmp_path: Path
) -> None:
    class PressControlC(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 3:
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="after step 4 of 6"):
        fit(fresh(), samples, NAMES, QUICK, output_dir=tmp_path, callbacks=[PressControlC()])
    assert signal.getsignal(signal.SIGINT) is handler

    model = fresh()
    fit(model, samples, NAMES, QUICK, output_dir=tmp_path, resume=True, callbacks=())
    assert equal(weights(model), uninterrupted)


def killed_run(output_dir: str) -> None:
    """Train in a process that is killed in the middle of the second epoch."""
    pictures = samples.__wrapped__()  # pyright: ignore
    kill = At(STEPS_PER_EPOCH + 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
    fit(fresh(), pictures, NAMES, QUICK, output_dir=output_dir, callbacks=[kill])


def test_a_killed_run_resumes_to_the_same_weights(
    samples: list[Sample], uninterrupted: dict[str, Tensor], tmp_path: Path
) -> None:
    program = f"import test_training; test_training.killed_run({str(tmp_path)!r})"
    paths = [str(Path(__file__).parent), *filter(None, sys.path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    # A kill in the middle of writing leaves a folder without a state; it must not be chosen.
    (tmp_path / "checkpoints" / "checkpoint-5").mkdir()

    model = fresh()
    fit(model, samples, NAMES, QUICK, output_dir=tmp_path, resume=True, callbacks=())
    assert equal(weights(model), uninterrupted)


def test_a_checkpoint_holds_the_adapter_and_nothing_of_the_host(
    samples: list[Sample], tmp_path: Path
) -> None:
    model = fresh()
    with pytest.raises(TrainingInterrupted):
        fit(model, samples, NAMES, QUICK, output_dir=tmp_path, callbacks=[At(2, interrupt)])

    (folder,) = (tmp_path / "checkpoints").iterdir()
    saved = load_file(folder / "trainable.safetensors")
    assert {name.removeprefix("model.mma."): v.shape for name, v in saved.items()} == {
        name: v.shape for name, v in weights(model).items()
    }
    size = sum(v.nbytes for v in saved.values())
    total = sum(path.stat().st_size for path in folder.iterdir())
    assert total < 2 * size + 100_000  # weights, momentum, and small change
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.load(folder / name, weights_only=True)  # nothing in it needs unpickling


def test_another_runs_checkpoint_is_refused_and_names_the_difference(
    samples: list[Sample], tmp_path: Path
) -> None:
    with pytest.raises(TrainingInterrupted):
        fit(fresh(), samples, NAMES, QUICK, output_dir=tmp_path, callbacks=[At(1, interrupt)])

    def again(model: nn.Module, config: TrainConfig, **options: Any) -> None:
        fit(model, samples, NAMES, config, output_dir=tmp_path, callbacks=(), **options)

    with pytest.raises(ConfigError, match=r"unfinished run; pass resume=True"):
        again(fresh(), QUICK)
    with pytest.raises(ConfigError, match=r"lr=0\.5, this one has lr=0\.1"):
        again(fresh(), dataclasses.replace(QUICK, lr=0.1), resume=True)
    with pytest.raises(ConfigError, match="adapter"):
        again(fresh(start_layer=10), QUICK, resume=True)


def test_an_interrupt_without_a_folder_says_that_the_run_is_lost(samples: list[Sample]) -> None:
    with pytest.raises(TrainingInterrupted, match=r"lost; pass output_dir") as error:
        fit(fresh(), samples, NAMES, QUICK, callbacks=[At(2, interrupt)])
    assert error.value.checkpoint is None
    with pytest.raises(ConfigError, match="output_dir"):
        fit(fresh(), samples, NAMES, QUICK, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    samples: list[Sample],
) -> None:
    model = fresh()
    before = weights(model)

    with pytest.raises(TrainingError, match=r"step 2 of 6.*learning rate 1e\+30, scale 0\.001"):
        fit(model, samples, NAMES, dataclasses.replace(QUICK, lr=1e30), callbacks=())

    assert equal(weights(model), before)  # the first step alone spoiled them


def test_training_that_makes_things_worse_is_an_error_that_keeps_the_weights(
    samples: list[Sample],
) -> None:
    model, config = fresh(), dataclasses.replace(QUICK, lr=100.0)
    before = weights(model)

    with pytest.raises(TrainingError, match=r"after training [\d.]+ %.*without the adapter [\d.]+"):
        fit(model, samples, NAMES, dataclasses.replace(config, check_progress=True), callbacks=())

    spoiled = weights(model)
    assert not equal(spoiled, before)
    assert model.mma.config.classnames == tuple(NAMES)  # pyright: ignore
    model = fresh()
    result = fit(model, samples, NAMES, config, callbacks=())
    assert result.train is None
    assert equal(weights(model), spoiled)


@pytest.mark.parametrize(
    ("lost", "won", "refused"),
    [(0, 0, False), (4, 0, False), (5, 0, True), (20, 15, False), (20, 4, True), (3, 9, False)],
)
def test_a_few_changed_answers_are_no_proof_of_harm(lost: int, won: int, refused: bool) -> None:
    labels = np.zeros(60, dtype=np.int64)
    before, after = labels.copy(), labels.copy()
    after[:lost] = 1
    before[lost : lost + won] = 1

    names = ("cat", "dog")
    with pytest.raises(TrainingError) if refused else contextlib.nullcontext():
        check_progress(Evaluation(labels, before, names), Evaluation(labels, after, names), QUICK)


@pytest.mark.parametrize(
    ("pictures", "batch_size", "expected"),
    [(10, 16, [10]), (16, 16, [16]), (17, 16, [16]), (35, 16, [16, 16])],
)
def test_a_rest_is_dropped_unless_it_is_all_there_is(
    pictures: int, batch_size: int, expected: list[int]
) -> None:
    batches = EpochBatches(pictures, batch_size, seed=1, current_epoch=lambda: 3)
    drawn = list(batches)
    assert [len(batch) for batch in drawn] == expected
    assert len(batches) == len(expected)
    assert len({index for batch in drawn for _, index in batch}) == sum(expected)
    assert {epoch for batch in drawn for epoch, _ in batch} == {3}


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        (batch,) = EpochBatches(50, 50, seed, lambda: epoch)
        return [index for _, index in batch]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)
    assert sorted(order(1, 0)) == list(range(50))


def test_a_picture_depends_on_seed_epoch_and_place_alone(samples: list[Sample]) -> None:
    pictures = Pictures(samples, TrainTransform(size=16), seed=1)
    first = pictures[(0, 2)]["pixel_values"]
    torch.manual_seed(99)
    assert torch.equal(pictures[(0, 2)]["pixel_values"], first)
    assert not torch.equal(pictures[(1, 2)]["pixel_values"], first)
    other = Pictures(samples, TrainTransform(size=16), seed=2)
    assert not torch.equal(other[(0, 2)]["pixel_values"], first)


def test_pictures_are_decoded_once_up_to_the_limit(samples: list[Sample]) -> None:
    calls: list[str] = []

    def counted(sample: Sample) -> Sample:
        def read() -> bytes:
            calls.append(sample.path.name)
            return sample.image  # pyright: ignore

        return dataclasses.replace(sample, image=read)

    kept = keep_decoded([counted(s) for s in samples], max_bytes=10 * 48 * 48 * 4)
    calls.clear()
    pictures = Pictures(kept, TrainTransform(size=16), seed=1)
    for epoch in range(2):
        for index in range(14):
            pictures[(epoch, index)]
    assert calls == [s.path.name for s in samples[10:]] * 2


def test_unreadable_pictures_stop_the_run_or_are_left_out(samples: list[Sample]) -> None:
    broken = Sample(Path("broken.png"), 0, NAMES[0], b"not a picture")
    mixed = [*samples[:5], broken, *samples[5:]]
    with pytest.raises(DataError, match=r"broken\.png"):
        fit(fresh(), mixed, NAMES, QUICK, callbacks=())

    config = dataclasses.replace(QUICK, epochs=1, skip_bad=True)
    result = fit(fresh(), mixed, NAMES, config, callbacks=())
    assert [sample.path.name for sample, _ in result.skipped] == ["broken.png"]
    assert result.steps == STEPS_PER_EPOCH


def test_the_global_random_states_and_the_models_mode_are_left_alone(
    samples: list[Sample],
) -> None:
    model = fresh()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())

    fit(model, samples, NAMES, dataclasses.replace(QUICK, epochs=1), callbacks=())

    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert np.array_equal(np.random.get_state()[1], expected[2])
    assert not model.training
    assert all(p.requires_grad == n.startswith("mma.") for n, p in model.named_parameters())


def test_nothing_is_printed(samples: list[Sample], capfd: pytest.CaptureFixture[str]) -> None:
    model = fresh()
    capfd.readouterr()
    fit(model, samples, NAMES, dataclasses.replace(QUICK, epochs=1))
    assert capfd.readouterr().out == ""


def test_bfloat16_trains_float32_weights_to_nearly_the_same_losses(
    samples: list[Sample],
) -> None:
    losses, found = {}, {}
    for precision in ("fp32", "bf16"):
        model, config = fresh(), dataclasses.replace(QUICK, precision=precision, lr=0.01)
        result = fit(model, samples, NAMES, config, callbacks=())
        losses[precision], found[precision] = [r.loss for r in result.history], weights(model)
    assert not equal(found["bf16"], found["fp32"])
    assert all(w.dtype == torch.float32 for w in found["bf16"].values())
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.1, abs=0.02)


def test_a_compiled_run_goes_through_the_compiler_and_takes_the_same_steps(
    samples: list[Sample], uninterrupted: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda m: compiled.append(m) or real(m, backend="eager"))
    model = fresh()
    with torch.compiler.set_stance("force_eager"):  # generating code would take minutes
        config = dataclasses.replace(QUICK, compile=True)
        result = fit(model, samples, NAMES, config, callbacks=())
    assert compiled == [result.classifier]
    assert equal(weights(model), uninterrupted)


def test_adamw_is_used_when_asked_for(
    samples: list[Sample], uninterrupted: dict[str, Tensor]
) -> None:
    model, config = fresh(), dataclasses.replace(QUICK, epochs=1, optimizer="adamw", lr=1e-3)
    before = weights(model)
    fit(model, samples, NAMES, config, callbacks=())
    # AdamW's early steps are about the learning rate long, whatever the gradient.
    change = (weights(model)["shared.12.bias"] - before["shared.12.bias"]).abs().max()
    assert 1e-3 < change < 4e-3


def plain_pieces(samples: list[Sample]) -> tuple[FewShotClassifier, Pictures]:
    model, tokenizer, processor = load_icon_clip()
    inject_mma(model, start_layer=9, seed=0)
    classifier = FewShotClassifier(model, tokenizer, NAMES, QUICK.template)
    return classifier, Pictures(samples, from_processor(processor)[0], seed=1)


def test_a_plain_trainer_and_a_hand_written_loop_take_the_same_step(
    samples: list[Sample], tmp_path: Path
) -> None:
    items = [(0, index) for index in range(4)]
    by_hand, pictures = plain_pieces(samples)
    batch = collate([pictures[item] for item in items])
    parameters = [p for p in by_hand.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    by_hand(**batch).loss.backward()
    optimizer.step()

    by_trainer, _ = plain_pieces(samples)
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    transformers.Trainer(
        by_trainer, arguments, data_collator=collate, train_dataset=[pictures[i] for i in items]
    ).train()

    hand, trainer = weights(by_hand.model), weights(by_trainer.model)
    start = weights(fresh())
    assert not equal(hand, start)
    for name in hand:
        assert torch.allclose(hand[name], trainer[name], atol=1e-6)


def test_models_that_cannot_be_trained_are_refused_with_the_way_out(
    samples: list[Sample],
) -> None:
    plain = load_icon_clip()[0]
    with pytest.raises(ConfigError, match=r"inject_mma\(model\)"):
        fit(plain, samples, NAMES, QUICK)
    frozen = fresh()
    frozen.mma.requires_grad_(False)  # pyright: ignore
    with pytest.raises(ConfigError, match="is_trainable=True"):
        fit(frozen, samples, NAMES, QUICK)
    switched_off = fresh(scale=0.0)
    with pytest.raises(ConfigError, match="scale is 0"):
        fit(switched_off, samples, NAMES, QUICK)


def test_data_that_cannot_be_used_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(DataError, match="label 2, but there are 2 class names"):
        fit(fresh(), samples, NAMES[:2], QUICK)
    with pytest.raises(DataError, match="no training pictures"):
        fit(fresh(), [], NAMES, QUICK)


def test_a_model_built_in_memory_needs_its_tokenizer_and_processor(
    samples: list[Sample],
) -> None:
    loaded, tokenizer, processor = load_icon_clip()
    model = inject_mma(transformers.CLIPModel(loaded.config).float(), start_layer=9)
    model.name_or_path = ""
    with pytest.raises(ConfigError, match=r"pass tokenizer=\.\.\."):
        fit(model, samples, NAMES, QUICK)
    with pytest.raises(ConfigError, match=r"pass image_processor=\.\.\."):
        fit(model, samples, NAMES, QUICK, tokenizer=tokenizer)
    config = dataclasses.replace(QUICK, epochs=1)
    options = {"tokenizer": tokenizer, "image_processor": processor, "callbacks": ()}
    assert fit(model, samples, NAMES, config, **options).steps == STEPS_PER_EPOCH


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"epochs": 0},
        {"batch_size": 2.5},
        {"optimizer": "lion"},
        {"precision": "fp16"},
        {"crop_scale": (0.0, 1.0)},
        {"num_workers": -1},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)


def test_the_defaults_are_the_papers_recipe() -> None:
    config = TrainConfig()
    assert (config.lr, config.momentum, config.weight_decay) == (0.0015, 0.9, 5e-4)
    assert (config.optimizer, config.epochs, config.batch_size) == ("sgd", 5, 16)
    assert (config.crop_scale, config.flip, config.seed) == ((0.08, 1.0), True, 1)
    assert config.template == "a photo of a {}."
