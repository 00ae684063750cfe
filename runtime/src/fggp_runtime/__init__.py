"""Run networks that fggp wrote, on a CPU, without PyTorch.

``net = fggp_runtime.load("net.fggp")``, then ``y = net(x)``.
"""

from fggp_runtime.network import Input, Network, load, load_bytes

__all__ = ["Input", "Network", "load", "load_bytes"]
