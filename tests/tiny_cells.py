"""A profile that trains in a second, with its pairs and reference log-probs."""

from dataclasses import replace

from tiny_models import save_tiny_llava
from tiny_rows import make_row

from napo.engine import preferences
from napo.noise import reference_logps
from napo.profiles import Evaluation, Lora, Profile, Training
from napo.workshop import artifacts
from napo.workshop.files import read_parquet

TRAINING = Training(beta=0.5, learning_rate=1e-2, epochs=2, batch_size=4, save_steps=2)


def make_rows(n_train=12, n_heldout=4):
    rows = [
        make_row(i, chosen=f"a cat, number {i}", rejected="a dog" + "!" * (i % 4)) for i in range(n_train + n_heldout)
    ]
    return [
        row
        | {
            "split": "train" if i < n_train else "heldout",
            "is_noise_language_biased": i % 3 == 0,
            "is_noise_vision_biased": None,
        }
        for i, row in enumerate(rows)
    ]


def make_profile(folder, **changes):
    """A profile whose model is a tiny LLaVA in `folder`."""
    if not (folder / "llava").exists():
        save_tiny_llava(folder / "llava")
    settings = {"lora": Lora(r=4, alpha=8), "training": TRAINING, "evaluation": Evaluation(batch_size=4)}
    return Profile(name="tiny", model=str(folder / "llava"), data="mine.parquet", workers=1, **settings | changes)


def make_base(profile, runs_dir, rows=None):
    """pairs.parquet and reference.parquet of base 0. Returns (rows, reference frame)."""
    folder = artifacts.run_folder(profile.name, "base-0", runs_dir=runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    rows = make_rows() if rows is None else rows
    preferences.write(rows, folder / "pairs.parquet")
    return rows, read_parquet(reference_logps.build(profile, 0, runs_dir=runs_dir))


def with_training(profile, **changes):
    return replace(profile, training=replace(profile.training, **changes))
