"""Training that skips pruned weights: `fggp.Pruner.accelerate`.

A method that never regrows needs no gradient of a pruned weight. So a layer's three products (its output, and the
gradients of its input and of its weight) are computed for the active weights alone, by the C++ kernels of
`csrc/training`. These read activations whose images are last in memory: [channel][row][column][image]. PyTorch's
strides express that. So modules, parameters and the loop stay as they are, and elementwise operations keep the layout.

`modules` has the classes that modules get, `products` their products, `thresholds` from which density on they are used.
"""
