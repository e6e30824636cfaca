"""The noise estimate for a preference file without known truth, as `napo noise` reports it."""

import numpy as np
import pandas as pd

from napo.engine.preferences import SHOWN_ROWS
from napo.noise import posterior
from napo.workshop.files import BadInput
from napo.workshop.texts import printable

MIN_ROWS = 20  # with fewer the rate's interval spans nearly everything


def check_answers(dataset, kinds, pairs):
    """Raises BadInput if there are fewer than MIN_ROWS rows, or with all rows that lack one of the answers."""
    if len(dataset) < MIN_ROWS:
        raise BadInput(f"{pairs}: {len(dataset)} rows, an estimate needs at least {MIN_ROWS}")
    missing = [
        f"row {printable(row_id)} has no {kind} answer"
        for kind in kinds
        for row_id, answer in zip(dataset["row_id"], dataset[kind], strict=True)
        if not (answer or "").strip()
    ]
    if missing:
        more = f"; and {len(missing) - SHOWN_ROWS} more" if len(missing) > SHOWN_ROWS else ""
        raise BadInput(f"{pairs}: {'; '.join(missing[:SHOWN_ROWS])}{more}: give each row one or drop it")


def estimates(seen, evidences, kinds, rng):
    """(long frame row_id, kind, raw_margin, evidence, same, posterior; {kind: rate with interval}).

    seen       DataFrame of `logps.measure`
    evidences  {biased kind: DataFrame of `evidence.measure`}; a kind without one, as `rejected`, uses its raw margin
    """
    frames, rates = [], {}
    for kind in kinds:
        margin = (seen["logps_chosen"] - seen[f"logps_{kind}"]).to_numpy(float)
        by_margin = -margin[:, None], np.zeros(len(seen), bool)
        log_odds, same = posterior.labelled(evidences[kind]) if kind in evidences else by_margin
        found = posterior.estimate(log_odds, same, rng=rng)
        columns = {"row_id": seen["row_id"], "kind": kind, "raw_margin": margin, "evidence": log_odds[:, 0]}
        frames.append(pd.DataFrame(columns | {"same": same, "posterior": found.posterior}))
        counts = {"rows": len(seen), "equal": int(same.sum())}
        rates[kind] = {"rate": found.rate, "lo": found.lo, "hi": found.hi} | counts
    return pd.concat(frames, ignore_index=True), rates
