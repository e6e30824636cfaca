"""The objective of every method against a plain numpy version written from the paper, row by row and pair by pair."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy.special import expit

from napo.methods import ALPHA, CORRUPTED, KINDS, METHODS, Method, Term
from napo.objectives import Labels, objective
from napo.q import noise_coefficient, row_q

BETA = 0.1
LITERAL = dataclasses.replace(METHODS["napo_paper"], gamma="literal")
MIXED = Method(
    "everything at once",
    (Term("rejected", "napo", q=0.7), Term("vision_biased", "napo", margin="mean"), Term("language_biased", "dpo")),
    gamma=(0.2, 0.5, 1.5),
    convention="authors",
    sft_weight=0.3,
    drop_noise=True,
)
CASES = {name: method for name, method in METHODS.items() if method.trained} | {"literal": LITERAL, "mixed": MIXED}


ALL_KINDS = (*KINDS, CORRUPTED)
NO_FLIPS = [name for name, method in CASES.items() if CORRUPTED in method.kinds]  # no rule for swapped labels


def batch(seed=0, n=5, scale=30.0):
    """(policy, reference, tokens), each {kind: (n,) float32 tensor}; margins of tens of nats."""
    rng = np.random.default_rng(seed)

    def draw(low, high):
        return {kind: torch.tensor(rng.uniform(low, high, n), dtype=torch.float32) for kind in ALL_KINDS}

    reference = draw(-120, -40)
    policy = {kind: reference[kind] + shift for kind, shift in draw(-scale, scale).items()}
    tokens = {kind: torch.tensor(rng.integers(1, 60, n)).float() for kind in ALL_KINDS}
    return policy, reference, tokens


def naive_objective(method, policy, reference, tokens, beta, flipped, noisy):
    """Float64, one pair after another: chosen and rejected change places first, then everything follows."""
    policy, reference, tokens = ({k: v.double().numpy() for k, v in d.items()} for d in (policy, reference, tokens))
    n = len(flipped)
    psi_sum, psi_mean = {}, {}
    for term in method.terms:
        psi_sum[term.kind], psi_mean[term.kind] = np.zeros(n), np.zeros(n)
        for i in range(n):
            better, worse = ("chosen", term.kind) if not flipped[i] else (term.kind, "chosen")
            reward_better = beta * (policy[better][i] - reference[better][i])
            reward_worse = beta * (policy[worse][i] - reference[worse][i])
            psi_sum[term.kind][i] = reward_better - reward_worse
            psi_mean[term.kind][i] = reward_better / tokens[better][i] - reward_worse / tokens[worse][i]
    total, record = 0.0, {}
    for number, term in enumerate(method.terms):
        psi = psi_sum[term.kind] if term.margin == "sum" else psi_mean[term.kind]
        alpha = 0.01 if term.margin == "sum" else 0.5
        if term.q is not None:
            q = term.q
        elif method.convention == "paper":
            q = min(max(1 - expit(alpha * psi.mean()), 0.01), 1.0)
        else:
            q = min(max(2 * (1 - expit(alpha * psi.mean() / beta)), 0.001), 1.0)
        means = {kind: values.mean() for kind, values in psi_sum.items()}
        if method.gamma == "equal":
            gamma = 1 / len(method.terms)
        elif method.gamma == "dynamic":
            gamma = max(means[term.kind], 0.01) / sum(max(mean, 0.01) for mean in means.values())
        elif method.gamma == "literal":
            gamma = min(max(means[term.kind] / sum(means.values()), 0.01), 1.0)
        else:
            gamma = method.gamma[number]
        values = []
        for i in range(n):
            if method.drop_noise and (flipped[i] or noisy[term.kind][i]):
                continue
            values.append(naive_loss(term, psi_sum[term.kind][i], q, beta))
        if term.loss == "dr_dpo":  # the batch's value from its pairs' DPO losses
            values = [-term.beta_prime * np.log(np.mean(np.exp(-np.array(values) / term.beta_prime)))]
        total += gamma * (np.mean(values) if values else 0.0)
        record |= {f"noise/gamma_{term.kind}": gamma, f"rewards/margins_{term.kind}": psi_sum[term.kind].mean()}
        record[f"rewards/accuracies_{term.kind}"] = (psi_sum[term.kind] > 0).mean()
        if term.loss == "napo":
            record[f"noise/q_{term.kind}"] = q
    if method.anchor_weight:
        rewards = beta * (policy["chosen"] - reference["chosen"])
        total += method.anchor_weight * np.mean(np.logaddexp(0, -rewards))
    if method.sft_weight:
        labelled = [("rejected" if flip else "chosen", i) for i, flip in enumerate(flipped)]
        total += method.sft_weight * np.mean([-policy[kind][i] / tokens[kind][i] for kind, i in labelled])
    return total, record


def naive_loss(term, psi, q, beta):
    """One pair's loss in numpy; of Dr. DPO the DPO loss that its batch is made from."""
    right, wrong, e = np.logaddexp(0, -psi), np.logaddexp(0, psi), term.epsilon
    return {
        "dpo": right,
        "dr_dpo": right,
        "napo": (1 - expit(psi) ** q) / q,
        "cdpo": (1 - e) * right + e * wrong,
        "robust_dpo": ((1 - e) * right - e * wrong) / (1 - 2 * e),
        "ipo": (psi / beta - 0.5 / beta) ** 2,
    }[term.loss]


def kept_pairs(method, flipped, noisy):
    return {kind: ~(flipped | noisy[kind]) for kind in KINDS} if method.drop_noise else None


@pytest.mark.parametrize("flips", [(), (0,), (1, 3)], ids=["clean", "one flip", "two flips"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_every_method_equals_the_naive_objective(name, seed, flips):
    method = CASES[name]
    flips = () if name in NO_FLIPS else flips
    policy, reference, tokens = batch(seed)
    flipped = torch.tensor([i in flips for i in range(5)])
    noisy = {kind: torch.tensor([kind == "language_biased" and i < 2 for i in range(5)]) for kind in KINDS}
    kept = kept_pairs(method, flipped, noisy)
    loss, metrics = objective(method, policy, reference, tokens, BETA, Labels(flipped, kept))
    expected, record = naive_objective(method, policy, reference, tokens, BETA, flipped, noisy)
    assert loss.item() == pytest.approx(expected, rel=3e-6)
    assert {name: metrics[name] for name in record} == pytest.approx(record, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in CASES if not CASES[n].drop_noise and n not in NO_FLIPS])
def test_flipping_all_rows_equals_swapping_the_answers(name):
    """A method with one term: exchanging the two answers' log-probs and lengths is what a flipped label means."""
    for term in CASES[name].terms:
        method = dataclasses.replace(CASES[name], terms=(term,), gamma="equal", sft_weight=0.0)
        policy, reference, tokens = batch(2)
        swapped = [{**d, "chosen": d[term.kind], term.kind: d["chosen"]} for d in (policy, reference, tokens)]
        flipped, _ = objective(method, policy, reference, tokens, BETA, Labels(flipped=torch.ones(5, dtype=torch.bool)))
        expected, _ = objective(method, *swapped, BETA)
        assert flipped.item() == pytest.approx(expected.item(), rel=1e-6)
        assert abs(flipped.item() - objective(method, policy, reference, tokens, BETA)[0].item()) > 1e-3


def test_gradient_reaches_every_policy_log_prob_and_equals_the_naive_slope():
    """Against central differences of the naive objective with q and gamma held where they are, as the paper does."""
    policy, reference, tokens = batch(4, scale=5.0)
    flipped = torch.tensor([False, True, False, False, False])
    policy = {kind: values.requires_grad_() for kind, values in policy.items()}
    loss, metrics = objective(METHODS["napo_paper"], policy, reference, tokens, BETA, Labels(flipped))
    loss.backward()
    fixed = Method(
        "fixed",
        tuple(dataclasses.replace(t, q=metrics.get(f"noise/q_{t.kind}")) for t in METHODS["napo_paper"].terms),
        gamma=tuple(metrics[f"noise/gamma_{t.kind}"] for t in METHODS["napo_paper"].terms),
    )
    detached = {kind: values.detach().double() for kind, values in policy.items()}
    for kind in KINDS:
        for i in range(5):
            step = torch.zeros(5, dtype=torch.float64)
            step[i] = 1e-4
            up, down = (
                naive_objective(fixed, {**detached, kind: detached[kind] + s}, reference, tokens, BETA, flipped, {})[0]
                for s in (step, -step)
            )
            assert policy[kind].grad[i].item() == pytest.approx((up - down) / 2e-4, rel=2e-3, abs=1e-7)


def test_first_loss_is_the_mix_of_ln_2_and_the_box_cox_value_at_one_half():
    logps = {kind: torch.full((3,), -50.0) for kind in ALL_KINDS}
    tokens = {kind: torch.full((3,), 9.0) for kind in ALL_KINDS}
    first = {name: objective(method, logps, logps, tokens, BETA)[0].item() for name, method in METHODS.items()}
    half = (1 - 0.5**0.5) / 0.5
    assert first["dpo_original"] == pytest.approx(np.log(2), rel=1e-6)
    assert first["dpo_all"] == pytest.approx(np.log(2), rel=1e-6)
    assert first["napo_paper"] == pytest.approx((np.log(2) + 2 * half) / 3, rel=1e-6)
    for name in ("cdpo", "robust_dpo", "dr_dpo", "lb_dpo", "vb_dpo"):
        assert first[name] == pytest.approx(np.log(2), rel=1e-6)
    assert first["ipo"] == pytest.approx(0.25 / BETA**2, rel=1e-6)
    assert first["mdpo"] == pytest.approx(3 * np.log(2), rel=1e-6)  # pair, image and anchor
    assert first["napo_on_clean"] == pytest.approx(half, rel=1e-6)
    assert first["napo_authors"] == pytest.approx(0.04 * np.log(2) + 0.48 * 0.5 + 0.48 * 0.5, rel=1e-6)


def test_oracle_drops_noise_and_flips_but_not_what_is_clean():
    method, (policy, reference, tokens) = METHODS["oracle"], batch(5)
    nobody = {kind: torch.zeros(5, dtype=torch.bool) for kind in KINDS}
    noisy = {**nobody, "language_biased": torch.tensor([True, False, True, False, False])}
    none = torch.zeros(5, dtype=torch.bool)
    loss, _ = objective(method, policy, reference, tokens, BETA, Labels(none, kept_pairs(method, none, noisy)))
    changed = {**policy, "language_biased": policy["language_biased"] + torch.tensor([50.0, 0, -70.0, 0, 0])}
    same, _ = objective(method, changed, reference, tokens, BETA, Labels(none, kept_pairs(method, none, noisy)))
    assert loss.item() == same.item()
    other, _ = objective(method, changed, reference, tokens, BETA, Labels(none, kept_pairs(method, none, nobody)))
    assert abs(other.item() - same.item()) > 0.01


def test_a_batch_of_noise_only_has_loss_zero_and_no_nan_gradient():
    policy, reference, tokens = batch(6)
    policy = {kind: values.requires_grad_() for kind, values in policy.items()}
    nothing = {kind: torch.zeros(5, dtype=torch.bool) for kind in KINDS}
    loss, _ = objective(METHODS["oracle"], policy, reference, tokens, BETA, Labels(weights=nothing))
    loss.backward()
    assert loss.item() == 0 and all((policy[kind].grad == 0).all() for kind in KINDS)


@pytest.mark.parametrize("name", ["napo_paper", "napo_authors"])
def test_q_and_gamma_speak_for_all_devices(name):
    """A gather that brings another device's rows must change q and gamma as one large batch would, and only them."""
    method, (policy, reference, tokens) = METHODS[name], batch(7, n=8)
    policy["chosen"] = policy["chosen"] + 40  # positive margins: the authors' q would be cut at 1 otherwise
    halves = [
        [{k: v[part] for k, v in d.items()} for d in (policy, reference, tokens)] for part in (slice(3), slice(3, 8))
    ]
    seen = []
    objective(method, *halves[1], BETA, gather=lambda x: seen.append(x) or x)
    others = iter(seen)  # the other device asks in the same order
    loss, metrics = objective(method, *halves[0], BETA, gather=lambda x: torch.cat([x, next(others)]))
    alone, _ = objective(method, *halves[0], BETA)
    _, whole = objective(method, policy, reference, tokens, BETA)
    for key in whole:
        if key.startswith("noise/"):
            assert metrics[key] == pytest.approx(whole[key], rel=1e-5), key
    assert metrics["logps/chosen"] == pytest.approx(halves[0][0]["chosen"].mean().item())
    assert loss.item() != pytest.approx(alone.item(), rel=1e-4)
    assert not any(x.requires_grad for x in seen)


@pytest.mark.parametrize("name", [name for name in METHODS if METHODS[name].trained])
def test_metric_names_are_the_fields_own(name):
    method, (policy, reference, tokens) = METHODS[name], batch(8)
    _, metrics = objective(method, policy, reference, tokens, BETA)
    expected = {"rewards/chosen", "logps/chosen"} | (
        {"rewards/margins", "rewards/accuracies"} if method.terms else set()
    )
    for term in method.terms:
        expected |= {f"rewards/{term.kind}", f"rewards/margins_{term.kind}", f"rewards/accuracies_{term.kind}"}
        expected |= {f"logps/{term.kind}", f"noise/gamma_{term.kind}"}
        expected |= {f"noise/q_{term.kind}"} if term.loss == "napo" else set()
    assert set(metrics) == expected and all(type(value) is float for value in metrics.values())


def test_rewards_by_hand():
    """One row, beta 0.1: chosen gains 4 nats over 2 tokens, rejected loses 6 over 3: margin 10, psi 1."""
    policy = {"chosen": torch.tensor([-6.0]), "rejected": torch.tensor([-26.0])}
    reference = {"chosen": torch.tensor([-10.0]), "rejected": torch.tensor([-20.0])}
    tokens = {"chosen": torch.tensor([2.0]), "rejected": torch.tensor([3.0])}
    loss, metrics = objective(METHODS["dpo_original"], policy, reference, tokens, 0.1)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)
    assert metrics == pytest.approx(
        {
            "rewards/chosen": 0.4,
            "rewards/rejected": -0.6,
            "rewards/margins_rejected": 1.0,
            "rewards/accuracies_rejected": 1.0,
            "rewards/margins": 1.0,
            "rewards/accuracies": 1.0,
            "logps/chosen": -6.0,
            "logps/rejected": -26.0,
            "noise/gamma_rejected": 1.0,
        }
    )


def test_paper_uses_the_mean_margin_for_language_and_the_sum_margin_for_vision():
    policy, reference, tokens = batch(9)
    _, metrics = objective(METHODS["napo_paper"], policy, reference, tokens, BETA)
    ratio = {kind: policy[kind] - reference[kind] for kind in KINDS}
    mean_margin = ratio["chosen"] / tokens["chosen"] - ratio["language_biased"] / tokens["language_biased"]
    margin = ratio["chosen"] - ratio["vision_biased"]
    assert metrics["noise/q_language_biased"] == noise_coefficient(BETA * mean_margin, 0.5).item()
    assert metrics["noise/q_vision_biased"] == noise_coefficient(BETA * margin, 0.01).item()


def test_a_terms_own_alpha_takes_the_place_of_the_papers():
    policy, reference, tokens = batch(3)
    terms = tuple(dataclasses.replace(t, alpha=0.3) if t.loss == "napo" else t for t in METHODS["napo_paper"].terms)
    method = dataclasses.replace(METHODS["napo_paper"], terms=terms)
    _, metrics = objective(method, policy, reference, tokens, BETA)
    psi = metrics["rewards/margins_vision_biased"]
    assert ALPHA["sum"] != 0.3
    assert metrics["noise/q_vision_biased"] == pytest.approx(np.clip(1 - expit(0.3 * psi), 0.01, 1), rel=1e-5)


def test_q_per_row_is_the_posterior_within_the_papers_range():
    policy, reference, tokens = batch(5)
    row_q_of = {"language_biased": row_q(torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0]))}
    loss, metrics = objective(METHODS["napo_row_q"], policy, reference, tokens, BETA, Labels(row_q=row_q_of))
    without, _ = objective(METHODS["napo_row_q"], policy, reference, tokens, BETA)
    ratio = {k: (policy[k] - reference[k]).double().numpy() for k in ("chosen", "language_biased")}
    p, q = expit(BETA * (ratio["chosen"] - ratio["language_biased"])), np.array([0.01, 0.2, 0.5, 0.9, 1.0])
    q0 = objective(METHODS["napo_row_q"], policy, reference, tokens, BETA)[1]["noise/q_language_biased"]
    change = np.mean((1 - p**q) / q) - np.mean((1 - p**q0) / q0)
    assert loss.item() - without.item() == pytest.approx(change / 3, abs=1e-5)
    assert metrics["noise/q_language_biased"] == pytest.approx(q.mean())


def test_weights_between_0_and_1_count_a_pair_in_part():
    policy, reference, tokens = batch(6)
    weight = torch.tensor([1.0, 0.5, 0.0, 1.0, 0.25])
    loss, _ = objective(METHODS["dpo_original"], policy, reference, tokens, BETA, Labels(weights={"rejected": weight}))
    ratio = {k: (policy[k] - reference[k]).double().numpy() for k in ("chosen", "rejected")}
    values = np.logaddexp(0, -BETA * (ratio["chosen"] - ratio["rejected"]))
    assert loss.item() == pytest.approx(np.average(values, weights=weight), rel=1e-5)
