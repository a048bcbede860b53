"""The implementations of the operators, each a module with the same functions.

``unavailable(device)`` and ``unsupported(device, dtype, kernel_size)`` say in a line why an
implementation cannot serve (None: it can). ``cuda`` and ``triton`` compute the convolution
(``forward``, ``input_gradient``, ``weight_gradient``) and the fused steps that
`reference.batch_norm` spells out; ``reference`` has ``forward``, which autograd differentiates, and
the steps. The callers have checked shapes, dtypes and devices.
"""
