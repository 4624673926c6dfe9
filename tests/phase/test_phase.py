"""Every diagnostic of phases, against a value worked out by hand and against its null."""

import math

import pytest
import torch
from torch import Tensor

from phasegpt import phase

F64 = torch.float64
DRAWS = 20_000


def uniform(*shape: int) -> Tensor:
    return 2 * math.pi * torch.rand(shape, dtype=F64)


def prefix_weights(T: int) -> Tensor:
    """Uniform causal attention [1,1,T,T]."""
    return (torch.ones(T, T, dtype=F64).tril() / torch.arange(1, T + 1).view(-1, 1))[None, None]


def random_attention(B: int, H: int, T: int, sharpness: float = 1.0) -> Tensor:
    """Softmax of random scores over the prefix, [B,H,T,T]."""
    scores = sharpness * torch.randn(B, H, T, T, dtype=F64)
    return scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)


def equal(result: Tensor, expected: Tensor | list | float, atol: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=result.dtype).expand_as(result)
    torch.testing.assert_close(result, expected, rtol=0, atol=atol, equal_nan=True)


# --- order parameters ------------------------------------------------------------------------


def test_R_and_psi_of_two_phases_are_the_cosine_of_half_their_distance_and_their_middle() -> None:
    theta = torch.tensor([[0.3, 1.5], [0.3, 0.3 + math.pi], [7.0, 7.0]], dtype=F64)
    equal(phase.order_parameter(theta), [math.cos(0.6), 0, 1])
    equal(phase.mean_phase(theta)[::2], [0.9, 7 - 2 * math.pi])
    equal(phase.resultant_length(theta.cos(), theta.sin()), [math.cos(0.6), 0, 1])


def test_the_axis_of_R_is_the_one_named() -> None:
    theta = uniform(2, 3, 4, 5)
    equal(phase.order_parameter(theta, 1), torch.exp(1j * theta).mean(1).abs())
    equal(phase.order_parameter(theta, (1, 3)), torch.exp(1j * theta).mean((1, 3)).abs())
    equal(phase.mean_phase(theta, 2), torch.exp(1j * theta).mean(2).angle())
    equal(phase.daido_harmonics(theta, 2, 0)[..., 0], phase.order_parameter(theta, 0))
    assert phase.ppc(theta, (0, 2)).shape == (3, 5)


def test_two_antiphase_clusters_have_no_first_harmonic_and_a_full_second() -> None:
    theta = torch.tensor([0.4] * 3 + [0.4 + math.pi] * 3, dtype=F64)
    equal(phase.daido_harmonics(theta), [0, 1, 0, 1])
    three = torch.arange(3, dtype=F64) * 2 * math.pi / 3
    equal(phase.daido_harmonics(three, 6), [0, 0, 1, 0, 0, 1])


def test_ppc_is_the_mean_cosine_between_different_phases() -> None:
    theta = uniform(4, 7)
    cosine = (theta.unsqueeze(-1) - theta.unsqueeze(-2)).cos()
    equal(phase.ppc(theta), (cosine.sum((-1, -2)) - 7) / (7 * 6))
    equal(phase.debias(torch.tensor([1.0, 0.0]), 5), [1.0, -0.25])
    assert phase.debias(torch.tensor(1.0), 1).isnan()


@pytest.mark.parametrize("n", [2, 4, 32])
def test_ppc_of_independent_phases_is_0_on_average_whatever_their_number(n: int) -> None:
    found = phase.ppc(uniform(DRAWS, n))
    assert abs(found.mean().item()) < 4 * found.std().item() / DRAWS**0.5
    assert found.std().item() == pytest.approx(1 / (n * (n - 1)) ** 0.5, rel=0.05)


def test_prefix_measures_are_those_of_every_prefix() -> None:
    theta = uniform(2, 9, 3)
    R, consistency = phase.prefix_order_parameter(theta), phase.prefix_ppc(theta)
    assert consistency[:, 0].isnan().all()
    for t in range(1, 9):
        equal(R[:, t], phase.order_parameter(theta[:, : t + 1], 1))
        equal(consistency[:, t], phase.ppc(theta[:, : t + 1], 1))
    equal(phase.prefix_order_parameter(theta.transpose(1, 2), dim=-1), R.transpose(1, 2))


def test_prefix_R_of_independent_tokens_falls_as_886_over_root_t_and_prefix_ppc_stays_0() -> None:
    theta = uniform(4000, 64)
    R, consistency = phase.prefix_order_parameter(theta), phase.prefix_ppc(theta)
    t = torch.arange(1, 65, dtype=F64)
    null = phase.null_order_parameter(t)
    assert (R.mean(0) / null - 1)[15:].abs().max() < 0.03
    assert null[-1].item() == pytest.approx(0.886 / 8, rel=1e-3)
    assert (consistency.mean(0) * t)[1:].abs().max() < 4 / 4000**0.5 * 1.5


# --- nulls -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [16, 32, 128])
def test_the_nulls_are_those_of_independent_uniform_phases(n: int) -> None:
    R = phase.order_parameter(uniform(DRAWS, n))
    assert R.mean().item() == pytest.approx(phase.null_order_parameter(n), rel=0.015)
    assert R.var().item() == pytest.approx(phase.null_order_parameter_variance(n), rel=0.05)
    for q in (0.5, 0.95, 0.99):
        quantile = phase.null_order_parameter_quantile(n, q)
        assert R.quantile(q).item() == pytest.approx(quantile, rel=0.03), q
    inside = ((R >= 0.2) & (R <= 0.35)).double().mean().item()
    assert phase.null_band_fraction(n, 0.2, 0.35) == pytest.approx(inside, abs=0.02)


def test_thirty_two_oscillators_have_the_nulls_that_the_reports_quote() -> None:
    assert phase.null_order_parameter(32) == pytest.approx(0.157, abs=5e-4)
    assert phase.null_order_parameter_quantile(32) == pytest.approx(0.306, abs=5e-4)
    assert phase.null_band_fraction(32, 0.35, 0.55) == pytest.approx(0.020, abs=5e-4)
    n = torch.tensor([16.0, 64.0])
    equal(phase.null_order_parameter(n), [phase.null_order_parameter(k) for k in (16, 64)], 1e-7)


# --- forces ----------------------------------------------------------------------------------


def test_without_coupling_phases_drift_by_omega_alone() -> None:
    theta, omega = uniform(1, 2, 2, 3), torch.randn(2, 3, dtype=F64)
    equal(phase.uncoupled_phases(theta, omega, steps=5, dt=0.2), theta + omega)


def test_forces_are_sums_of_sines_over_oscillators_or_tokens() -> None:
    theta = 3 * uniform(2, 6, 3, 4)
    pairs = theta.unsqueeze(-2) - theta.unsqueeze(-1)  # [..., n, m] = theta_m - theta_n
    equal(phase.mean_field_force(theta), pairs.sin().mean(-1))
    equal(phase.mean_field_force(theta, lag=0.7), (pairs - 0.7).sin().mean(-1))
    equal(phase.mean_field_force(theta.transpose(1, 3), 1).transpose(1, 3), pairs.sin().mean(-1))
    for t in range(6):
        prefix = (theta[:, : t + 1] - theta[:, t : t + 1]).sin().mean(1)
        equal(phase.prefix_force(theta)[:, t], prefix)


def test_uniform_attention_over_the_prefix_is_the_prefix_measure() -> None:
    theta, uniform_A = uniform(2, 6, 3, 4), prefix_weights(6).expand(2, 3, 6, 6)
    equal(phase.attention_force(theta, uniform_A), phase.prefix_force(theta))
    equal(phase.attention_order_parameter(theta, uniform_A), phase.prefix_order_parameter(theta))
    equal(phase.effective_keys(uniform_A), torch.arange(1, 7).view(1, -1, 1, 1))


def test_the_root_mean_square_force_of_independent_phases_is_the_one_stated() -> None:
    force = phase.mean_field_force(uniform(DRAWS, 8))
    assert force.square().mean().sqrt().item() == pytest.approx((7 / 2) ** 0.5 / 8, rel=0.01)
    force = phase.prefix_force(uniform(DRAWS, 8))[:, 4]
    assert force.square().mean().sqrt().item() == pytest.approx(2**0.5 / 5, rel=0.02)


# --- attention -------------------------------------------------------------------------------


def test_attention_measures_are_weighted_sums_over_the_keys() -> None:
    theta, A = uniform(2, 5, 3, 4), random_attention(2, 3, 5)
    z = torch.exp(1j * theta)
    Z = torch.einsum("bhtu,buhn->bthn", A + 0j, z)
    equal(phase.attention_order_parameter(theta, A), Z.abs())
    cosine = (theta.unsqueeze(2) - theta.unsqueeze(1)).cos()  # [B,t,u,H,N]
    equal(
        phase.attention_coherence(theta, A),
        torch.einsum("bhtu,btuhn->bthn", A, cosine),
    )
    equal(phase.attention_energy(theta, A), -torch.einsum("bhtu,btuhn->bhn", A, cosine) / 2)
    assert phase.attention_order_parameter(theta, A.bfloat16()).dtype == F64


def test_attention_on_one_key_sees_full_local_order_and_one_key() -> None:
    theta, A = uniform(1, 4, 1, 3), torch.zeros(1, 1, 4, 4, dtype=F64)
    A[..., 0] = 1
    equal(phase.attention_order_parameter(theta, A), 1)
    equal(phase.attention_coherence(theta, A), (theta - theta[:, :1]).cos())
    equal(phase.effective_keys(A), 1)


def test_attention_on_random_phases_has_the_null_of_its_effective_keys() -> None:
    A = random_attention(1, 1, 64)
    theta = uniform(1, 64, 1, 20_000)
    n, R = phase.effective_keys(A)[0, :, 0], phase.attention_order_parameter(theta, A)[0, :, 0]
    late = n[:, 0] > 16
    ratio = R.mean(-1, keepdim=True) / phase.null_order_parameter(n)
    assert late.sum() > 10
    assert (ratio[late] - 1).abs().max() < 0.03
    consistency = phase.debias(R, n).mean(-1)
    assert (consistency[late] * n[late, 0]).abs().max() < 0.04  # sd 1/141
    own = A[0, 0].diagonal()
    coherence = phase.attention_coherence(theta, A)[0, :, 0].mean(-1)
    equal(coherence, own, 0.03)


def test_permuted_attention_has_the_same_weights_on_other_tokens_of_the_prefix() -> None:
    A = random_attention(2, 3, 12)
    permuted = phase.permute_within_prefix(A, torch.Generator().manual_seed(1))
    assert torch.equal(permuted.triu(1), torch.zeros_like(A))
    assert torch.equal(permuted.sort(-1).values, A.sort(-1).values)
    assert not torch.equal(permuted, A)
    again = phase.permute_within_prefix(A, torch.Generator().manual_seed(1))
    assert torch.equal(again, permuted)
    many = phase.permute_within_prefix(A[:1, :1].expand(DRAWS, 1, 12, 12))
    equal(many.mean(0)[0], prefix_weights(12)[0, 0], 0.02)


# --- dynamics --------------------------------------------------------------------------------


def test_effective_frequency_counts_whole_turns() -> None:
    start = torch.tensor([0.0, 1.0], dtype=F64)
    end = start + torch.tensor([6 * math.pi, -1.0], dtype=F64)
    equal(phase.effective_frequency(start, end, 2.0), [3 * math.pi, -0.5])


def test_locked_fraction_is_the_share_near_the_mean_frequency() -> None:
    frequency = torch.tensor([[1.0, 1.01, 0.99, 5.0, -3.0], [2.0] * 5], dtype=F64)
    equal(phase.locked_fraction(frequency, 0.02), [0.6, 1.0])
    equal(phase.locked_fraction(frequency.T, 0.02, dim=0), [0.6, 1.0])


def test_coupling_budget_is_coupling_times_time() -> None:
    equal(phase.coupling_budget(torch.tensor([0.5, 2.0]), steps=10, dt=0.1), [0.5, 2.0])


def moving_pairs(T: int = 400) -> Tensor:
    """theta[T,5]: 0 and 1 locked, 2 and 3 locked in antiphase, 4 alone; three frequencies."""
    t = torch.arange(T, dtype=F64) * 2 * math.pi / T
    a, b, c = 3 * t, 7 * t, 18 * t
    return torch.stack((a, a + 1, b, b + math.pi, c), 1)


def test_phase_locking_values_are_1_within_and_0_between_locked_groups() -> None:
    plv = phase.phase_locking_values(moving_pairs(), time=0)
    expected = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2), torch.ones(1, 1))
    equal(plv, expected.double())
    equal(phase.phase_locking_values(moving_pairs().T[None], time=-1, dim=1), plv[None])
    half = torch.tensor([[0.0, 0.0], [0.0, math.pi / 2]], dtype=F64)  # times x oscillators
    equal(phase.phase_locking_values(half, time=0)[0, 1], 0.5**0.5)


def test_phase_locking_of_random_pairs_has_the_null_of_the_number_of_times() -> None:
    plv = phase.phase_locking_values(uniform(50, 200), time=0)
    pairs = plv[torch.ones(200, 200).triu(1).bool()]
    assert pairs.mean().item() == pytest.approx(phase.null_order_parameter(50), rel=0.01)
    assert phase.debias(pairs, 50).mean().item() == pytest.approx(0, abs=1e-3)


def test_clusters_are_the_connected_components_of_the_locking_matrix() -> None:
    plv = phase.phase_locking_values(moving_pairs(), time=0)
    assert phase.locking_clusters(plv, 0.9).tolist() == [0, 0, 2, 2, 4]
    chain = torch.eye(40) + torch.ones(39).diag(1) + torch.ones(39).diag(-1)
    assert phase.locking_clusters(chain, 0.5).unique().tolist() == [0]
    both = torch.stack((chain, torch.eye(40)))
    assert phase.locking_clusters(both, 0.5)[1].tolist() == list(range(40))
    assert phase.locking_clusters(torch.ones(1, 1), 0.5).tolist() == [0]


def test_clusters_of_independent_phases_are_single_above_the_null() -> None:
    plv = phase.phase_locking_values(uniform(400, 20), time=0)
    threshold = phase.null_order_parameter_quantile(400, 1 - 1e-4)
    assert phase.locking_clusters(plv, threshold).tolist() == list(range(20))


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_k_equal_independent_clusters_count_as_k(k: int) -> None:
    t = torch.arange(600, dtype=F64) * 2 * math.pi / 600
    frequency = torch.arange(k).repeat_interleave(6 // k) + 1
    theta = t.unsqueeze(-1) * frequency + uniform(6)
    equal(phase.cluster_count(theta, time=0), k, 1e-9)


def test_unequal_clusters_count_as_the_exponential_of_their_entropy() -> None:
    shares = torch.tensor([0.4, 0.4, 0.2], dtype=F64)
    expected = torch.special.entr(shares).sum().exp().item()
    equal(phase.cluster_count(moving_pairs(), time=0), expected, 1e-9)
    many = phase.cluster_count(uniform(20_000, 8), time=0)
    assert many.item() == pytest.approx(8, rel=1e-3)


def test_metastability_and_chimera_index_tell_time_from_communities() -> None:
    chimera = torch.tensor([1.0, 0.0], dtype=F64).expand(5, 2)  # one head in synchrony
    together = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=F64).view(4, 1).expand(4, 2)
    for R, of_time, of_heads in ((chimera, 0, 0.5), (together, 1 / 3, 0)):
        for x, time, community in ((R, 0, 1), (R.T, 1, 0), (R.T, -1, -2)):
            equal(phase.metastability(x, time=time, community=community), of_time)
            equal(phase.chimera_index(x, time=time, community=community), of_heads)
    R = torch.rand(3, 6, 4, dtype=F64)
    assert phase.metastability(R, time=1, community=2).shape == (3,)


def test_metastability_chimera_index_and_susceptibility_have_the_variance_of_R_as_null() -> None:
    n = 32
    R = phase.order_parameter(uniform(4000, 8, n))  # times x communities x oscillators
    null = phase.null_order_parameter_variance(n)
    assert phase.metastability(R, time=0, community=1).item() == pytest.approx(null, rel=0.03)
    assert phase.chimera_index(R, time=0, community=1).item() == pytest.approx(null, rel=0.03)
    chi = phase.susceptibility(R, n, time=0)
    assert chi.mean().item() == pytest.approx(1 - math.pi / 4, rel=0.03)


def test_band_statistics_of_a_series_counted_by_hand() -> None:
    R = torch.tensor([[0.1, 0.4, 0.5, 0.9, 0.4, 0.2], [0.0] * 6], dtype=F64)
    band = phase.band_statistics(R, 0.35, 0.55, dt=0.1)
    equal(band.fraction, [0.5, 0])
    equal(band.inside, [0.3, 0])
    equal(band.entry, [0.1, math.inf])
    assert band.exits.tolist() == [2, 0]
    other = phase.band_statistics(R.T, 0.35, 0.55, time=0, dt=0.1)
    assert all(torch.equal(a, b) for a, b in zip(band, other, strict=True))


def test_independent_phases_are_in_the_band_as_often_as_its_null_says() -> None:
    R = phase.order_parameter(uniform(DRAWS, 32))
    fraction = phase.band_statistics(R, 0.1, 0.3).fraction.item()
    assert fraction == pytest.approx(phase.null_band_fraction(32, 0.1, 0.3), abs=0.015)


# --- spread ----------------------------------------------------------------------------------


def test_participation_ratio_counts_the_directions_in_which_tokens_differ() -> None:
    t = torch.arange(60, dtype=F64) * 2 * math.pi / 60
    circle = torch.stack((t, t + 0.5, t - 2), -1).view(1, 60, 1, 3)  # one angle: a plane
    frozen = torch.tensor([0.0, 2.0, 4.0], dtype=F64).expand(1, 60, 1, 3)
    equal(phase.participation_ratio(torch.cat((circle, frozen), 2)), [2, 0], 1e-9)
    apart = torch.stack((t, 2 * t, 3 * t), -1).view(1, 60, 1, 3)
    equal(phase.participation_ratio(apart), 6, 1e-9)


def test_constant_offsets_move_R_but_not_the_participation_ratio() -> None:
    theta, offset = 0.3 * torch.randn(4, 50, 2, 8, dtype=F64), 2 * torch.randn(8, dtype=F64)
    equal(phase.participation_ratio(theta + offset).log(), phase.participation_ratio(theta).log())
    assert phase.order_parameter(theta + offset).mean() < phase.order_parameter(theta).mean() / 2


def test_participation_ratio_of_independent_phases_is_the_one_stated() -> None:
    found = phase.participation_ratio(uniform(4, 100, 50, 8)).mean().item()
    assert found == pytest.approx(16 / (1 + 16 / 400), rel=0.01)


def test_offset_spread_is_that_of_the_constant_part_alone() -> None:
    offset = torch.tensor([0.0, 2.0, 4.0, 6.0], dtype=F64)
    theta = offset + torch.randn(5, 20, 3, 1, dtype=F64)
    equal(phase.offset_spread(theta), 5**0.5)
    null = phase.offset_spread(1.6 * torch.randn(5, 20, 200, 64, dtype=F64))
    assert null.square().mean().sqrt().item() == pytest.approx(1.6 / 10, rel=0.03)


def test_loss_correlation_is_pearsons_per_head() -> None:
    loss = torch.randn(3, 40, dtype=F64)
    coherence = torch.stack((2 - 3 * loss, loss.square(), torch.randn(3, 40, dtype=F64)), -1)
    found = phase.loss_correlation(loss, coherence)
    columns = torch.cat((loss.reshape(1, -1), coherence.flatten(0, 1).T))
    equal(found, torch.corrcoef(columns)[0, 1:])
    equal(found[0], -1)


def test_loss_correlation_of_unrelated_tokens_has_sd_of_one_over_root_of_their_number() -> None:
    loss, coherence = torch.randn(2, 51), torch.rand(2, 51, 5000)
    found = phase.loss_correlation(loss, coherence)
    assert found.std().item() == pytest.approx(101**-0.5, rel=0.03)
    assert abs(found.mean().item()) < 0.01


# --- all of them -----------------------------------------------------------------------------


def test_measures_of_phases_do_not_see_whole_turns_or_a_common_shift() -> None:
    theta, A = uniform(2, 6, 3, 4), random_attention(2, 3, 6)
    moved = theta + 0.7 + 2 * math.pi * torch.randint(-3, 4, theta.shape).double()
    for measure in (
        phase.order_parameter,
        phase.daido_harmonics,
        phase.ppc,
        phase.prefix_ppc,
        phase.mean_field_force,
        phase.prefix_force,
        phase.participation_ratio,
        lambda x: phase.attention_order_parameter(x, A),
        lambda x: phase.attention_coherence(x, A),
        lambda x: phase.attention_force(x, A),
        lambda x: phase.phase_locking_values(x, time=1),
        lambda x: phase.cluster_count(x, time=1),
    ):
        equal(measure(moved), measure(theta), 1e-10)


def test_every_public_name_is_offered_and_documented() -> None:
    for name in phase.__all__:
        assert getattr(phase, name).__doc__, name
