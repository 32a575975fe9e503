"""Writes pytorch_layers.npz: PyTorch's RNN, LSTM and GRU of two layers, run and differentiated.

    python tests/data/pytorch_layers.py

PyTorch 2.13, on the CPU in float64. For each layer stack the file holds its state_dict, what it is
given, its outputs o, and the gradients of sum(sin(k o)), k a random number for each entry of o.
"""

from pathlib import Path

import numpy as np

T, B, D, H, LAYERS = 5, 3, 2, 4, 2


def main():
    import torch

    torch.manual_seed(0)
    xs = torch.randn(T, B, D, dtype=torch.float64)
    weights = torch.rand(T, B, H, dtype=torch.float64) + 0.5
    numbers = {"xs": xs, "weights": weights}
    for name in ("RNN", "LSTM", "GRU"):
        layers = getattr(torch.nn, name)(D, H, LAYERS, dtype=torch.float64)
        inputs = xs.clone().requires_grad_()
        outputs, _ = layers(inputs)
        torch.sum(torch.sin(weights * outputs)).backward()
        numbers |= {f"{name}/{key}": value for key, value in layers.state_dict().items()}
        numbers |= {f"{name}/grad/{key}": value.grad for key, value in layers.named_parameters()}
        numbers |= {f"{name}/outputs": outputs, f"{name}/grad/xs": inputs.grad}
    arrays = {key: value.detach().numpy() for key, value in numbers.items()}
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **arrays)


if __name__ == "__main__":
    main()
