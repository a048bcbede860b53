"""The implementations of the operators, each a module with the same functions.

``unavailable(device)`` and ``unsupported(device, dtype, kernel_size)`` say in a line why an
implementation cannot serve (None: it can); ``forward``, ``input_gradient`` and ``weight_gradient``
compute. The callers have checked shapes, dtypes and devices.
"""
