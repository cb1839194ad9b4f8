"""The published model and its training in plain PyTorch, to compare with.

Needs PyTorch, which the package itself does not: pip install torch
"""

import numpy as np
import torch
from torch import nn


class SequentialAutoencoder(nn.Module):
    """The published model; names of weights are those that `sbtt_jax.convert` reads."""

    def __init__(self, neurons: int, encoder_size: int, decoder_size: int, dropout: float):
        super().__init__()
        self.encoder = nn.GRU(neurons, encoder_size, batch_first=True, bidirectional=True)
        self.ic_linear = nn.Linear(2 * encoder_size, decoder_size)
        self.decoder = nn.GRU(1, decoder_size, batch_first=True)
        self.readout = nn.Linear(decoder_size, neurons)
        self.dropout = nn.Dropout(dropout)

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Log-rates from counts, both [trial, bin, neuron]."""
        trials, bins, _ = counts.shape
        _, final = self.encoder(counts)  # direction trial encoder
        summary = self.dropout(torch.cat((final[0], final[1]), dim=-1))
        ic = self.dropout(self.ic_linear(summary))
        states, _ = self.decoder(counts.new_zeros(trials, bins, 1), ic[None])
        return self.readout(states)


def masked_nll(lograte: torch.Tensor, counts: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
    """Mean Poisson negative log-likelihood over observed points (`observed` is 1 or 0)."""
    nll = torch.exp(lograte) - counts * lograte
    return (nll * observed).sum() / observed.sum()


class Training:
    """One model, its optimizer and its trials (counts [trial, bin, neuron], NaN where missing).

    All trials stay in memory and batches are selected by index, without the cost of a data loader;
    nothing is logged within an epoch, and no R² is computed.
    """

    def __init__(
        self,
        train: np.ndarray,
        valid: np.ndarray,
        *,
        encoder_size: int,
        decoder_size: int,
        dropout: float,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
    ):
        self.train, self.valid = torch.from_numpy(train), torch.from_numpy(valid)
        self.model = SequentialAutoencoder(train.shape[2], encoder_size, decoder_size, dropout)
        # The fastest of PyTorch's implementations of Adam.
        self.adam = torch.optim.Adam(
            self.model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True
        )
        self.batch_size = batch_size

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Start from these weights."""
        self.model.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})

    def epoch(self, order: np.ndarray | None = None) -> tuple[float, float]:
        """Train on all batches, shuffled unless an `order` is given, then validate.

        Returns the mean training NLL over batches, and the validation NLL.
        """
        trials = len(self.train)
        order = torch.randperm(trials) if order is None else torch.from_numpy(order)
        self.model.train()
        total = torch.zeros(())
        batches = order.split(self.batch_size)
        for batch in batches:
            counts, observed = self._prepared(self.train[batch])
            loss = masked_nll(self.model(counts), counts, observed)
            self.adam.zero_grad(set_to_none=True)
            loss.backward()
            self.adam.step()
            total += loss.detach()
        return total.item() / len(batches), self.validate()

    @torch.inference_mode()
    def validate(self) -> float:
        """Mean NLL over all observed validation points, without dropout."""
        self.model.eval()
        nll = points = torch.zeros(())
        for batch in self.valid.split(self.batch_size):
            counts, observed = self._prepared(batch)
            here = observed.sum()
            nll = nll + masked_nll(self.model(counts), counts, observed) * here
            points = points + here
        return (nll / points).item()

    @staticmethod
    def _prepared(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        observed = (~batch.isnan()).to(batch.dtype)
        return batch.nan_to_num(nan=0.0), observed
