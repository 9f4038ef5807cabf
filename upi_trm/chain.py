"""The explicit mixture of Theorem 5.7 as a policy: networks and their shares, of bounded length.

Without distillation pi_new = (1 - alpha) pi + alpha pi_cand is what acts: pi_k = sum_j w_j c_j over
the first policy and every candidate since. A closed-form candidate would need the values of its
iteration wherever it acts; so the candidate is the network fitted to it, the theorem holds for that
network, and the mixture of it is exact at every state. `MixturePolicy` is the mixture,
`ChainPolicy` lets it act in the place of a distilled policy.
"""

import copy
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from trm.experiments.states import policy_probabilities
from trm.nn.model import StateBatch, TinyRecursiveModel
from upi_trm.advantage import PerEdit
from upi_trm.improvement import DistilledPolicy, PolicyStep, kl_divergence, mixture


class MixturePolicy(nn.Module):
    """pi = sum_j w_j c_j over frozen networks, statewise; the newest comes last.

    At most `length` networks: beyond that the one with the smallest share w goes, the newest
    excepted, and the others take its share in proportion. That moves pi by at most w in total
    variation at every state, and w <= 1 / length.
    """

    shares: Tensor

    def __init__(self, first: TinyRecursiveModel, *, length: int) -> None:
        """Start as `first` alone; `length` is at least 2."""
        super().__init__()
        self.length = length
        self.networks = nn.ModuleList([_frozen(first)])
        self.register_buffer("shares", torch.ones(1, dtype=torch.float64))

    def __len__(self) -> int:
        """Number of networks."""
        return len(self.networks)

    @torch.no_grad()
    def probabilities(self, states: StateBatch, *, chunk: int = 1024) -> PerEdit:
        """pi(a | s), exactly 0 at illegal edits."""
        total: Tensor | None = None
        for share, network in zip(self.shares.tolist(), self.networks, strict=True):
            part = policy_probabilities(cast(TinyRecursiveModel, network), states, chunk=chunk)
            total = share * part if total is None else total.add_(part, alpha=share)
        assert total is not None
        return total

    @torch.no_grad()
    def append(self, candidate: TinyRecursiveModel, alpha: float) -> float:
        """Make it (1 - alpha) pi + alpha pi_cand, with a copy of the candidate.

        Returns:
            The share that was dropped to stay within `length`: the largest total variation, over
            all states, between the mixture and what is kept of it. 0 while nothing was dropped.
        """
        self.networks.append(_frozen(candidate))
        new = torch.tensor([alpha], dtype=torch.float64, device=self.shares.device)
        self.shares = torch.cat([(1 - alpha) * self.shares, new])
        dropped = 0.0
        while len(self) > self.length or bool((self.shares[:-1] == 0).any()):
            index = int(self.shares[:-1].argmin())
            share = float(self.shares[index])
            self.networks = nn.ModuleList(n for i, n in enumerate(self.networks) if i != index)
            kept = torch.cat([self.shares[:index], self.shares[index + 1 :]])
            self.shares = kept / (1 - share)
            dropped += share
        return dropped

    def load_weights(
        self, weights: Mapping[str, Tensor], build: Callable[[], TinyRecursiveModel]
    ) -> None:
        """Take up a `state_dict` of any length; `build` makes a network of the right shape."""
        count = len(weights["shares"])
        self.networks = nn.ModuleList(_frozen(build()) for _ in range(count))
        self.shares = torch.ones(count, dtype=torch.float64, device=self.shares.device)
        self.load_state_dict(dict(weights))


def _frozen(network: TinyRecursiveModel) -> TinyRecursiveModel:
    return copy.deepcopy(network).requires_grad_(False)


class ChainPolicy:
    """pi is the explicit mixture; pi_phi is the network that candidates are fitted with."""

    def __init__(
        self, network: TinyRecursiveModel, *, length: int, clamp: Callable[[], None]
    ) -> None:
        """Start as `network` alone.

        Args:
            network: pi_phi.
            length: networks of the mixture at most.
            clamp: keeps pi_phi within its certified bound; called when it takes up weights.
        """
        self.network = network
        self.mixture = MixturePolicy(network, length=length)
        self._clamp = clamp

    def probabilities(self, states: StateBatch) -> PerEdit:
        """pi(a | s), exactly 0 at illegal edits."""
        return self.mixture.probabilities(states)

    def move(self, step: PolicyStep) -> tuple[PerEdit, dict[str, float]]:
        """Make pi_phi the candidate, which is what will act, and append a copy of it.

        Returns:
            The candidate, and figures; the KLs are from the mixture that was asked for.
        """
        if step.formed.network is None:
            report = step.fit(step.formed.probability)
            metrics = {"candidate_kl": report.kl, "distil_steps": float(report.steps)}
        else:
            self.network.load_state_dict(step.formed.network.state_dict())
            self._clamp()
            metrics = {"distil_steps": 0.0}
        candidate = policy_probabilities(self.network, step.states)
        metrics["chain_dropped"] = self.mixture.append(self.network, step.alpha)
        metrics["chain_length"] = float(len(self.mixture))
        check = slice(0, step.num_held_out)
        asked = mixture(step.policy, step.formed.probability, alpha=step.alpha)[check]
        states = step.states.select(check)
        mask = states.mask > 0
        before, after = (
            kl_divergence(asked, one.clamp_min(1e-30).log(), mask).mean()
            for one in (step.policy[check], self.mixture.probabilities(states))
        )
        return candidate, metrics | {"kl": float(after), "kl_asked": float(before)}

    def after_fit_step(self) -> None:
        """The mixture holds copies: there is nothing to follow."""

    @property
    def deployed(self) -> MixturePolicy:
        """The mixture."""
        return self.mixture

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network that candidates are fitted with, and the mixture."""
        return {"candidate": self.network, "chain": self.mixture}

    def load(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Take up both."""
        self.network.load_state_dict(weights["candidate"])
        self.mixture.load_weights(weights["chain"], lambda: self.network)


ActingPolicy = DistilledPolicy | ChainPolicy
"""pi, the policy that acts, around the network pi_phi."""
