"""One fused kernel for rows of threshold rules on CUDA, where Triton is installed; see `kad.method.kernels.log_pi`.

Nothing here is needed: without Triton or CUDA the plain formulation serves (`kad.compose`), with the same results.
"""

from kad.method.kernels.dispatch import bytes_moved, compose_rows, takes, usable

__all__ = ["bytes_moved", "compose_rows", "takes", "usable"]
