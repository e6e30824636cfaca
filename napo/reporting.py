"""Logging back ends of a training, by name: what `transformers.Trainer` knows as `report_to`."""

from transformers.integrations import integration_utils

from napo.artifacts import BadInput


def callbacks(names, folder):
    """Trainer's callbacks for back ends ("tensorboard", "wandb", ...); TensorBoard's files go to `folder`.

    They get the lines of steps.jsonl, with TRL's names. Raises BadInput for an unknown or a missing one.
    """
    found = []
    for name in names:
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(integration_utils.INTEGRATION_TO_CALLBACK))
            raise BadInput(f"report_to={name}: no such logging back end; there are {known}")
        try:
            callback = integration_utils.INTEGRATION_TO_CALLBACK[name]()
        except (RuntimeError, ImportError) as error:
            raise BadInput(f"report_to={name}: {name} is not installed: pip install {name}") from error
        if name == "tensorboard":
            callback.logging_dir = str(folder)
        found.append(callback)
    return found
