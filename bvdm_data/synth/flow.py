"""Optical flow: the paper's FlowNet, and warping."""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

FLOW_SIZE = 96
"""Side in pixels of the patches that FlowNet works on."""


class FlowNet(nn.Module):
    """Predicts the flow that carries one mask onto the next: a VoxelMorph U-Net in 2D.

    The paper's flow prediction model (section 2, FPMs; Balakrishnan et al. 2019), with the 116,370
    parameters of the authors' network. The displacement is not integrated.
    """

    def __init__(self) -> None:
        """Make the network; its flow is next to zero until it is trained."""
        super().__init__()
        conv = functools.partial(nn.Conv2d, kernel_size=3, padding=1)
        self.encoder = nn.ModuleList(conv(c, 32) for c in (2, 32, 32, 32))
        self.decoder = nn.ModuleList(conv(c, 32) for c in (32, 64, 64, 64))
        self.last = nn.ModuleList([conv(64, 32), conv(32, 16)])
        self.flow = conv(16, 2)
        # On the meta device there is nothing to draw, and PyTorch would import its compiler.
        if not self.flow.weight.is_meta:
            nn.init.normal_(self.flow.weight, std=1e-5)  # so that training starts at no flow
        nn.init.zeros_(self.flow.bias)  # type: ignore[arg-type]

    def forward(
        self, source: Float[Tensor, "N 1 H W"], target: Float[Tensor, "N 1 H W"]
    ) -> Float[Tensor, "N 2 H W"]:
        """Predict the backward flow, from the target to the source, in pixels."""
        x = torch.cat([source, target], 1)
        skips = []
        for block in self.encoder:
            x = F.leaky_relu(block(x), 0.2)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        for block in self.decoder:
            x = F.leaky_relu(block(x), 0.2)
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = torch.cat([x, skips.pop()], 1)
        for block in self.last:
            x = F.leaky_relu(block(x), 0.2)
        # Displacements of several pixels need more digits than bfloat16 has.
        with torch.autocast(x.device.type, enabled=False):
            flow: Tensor = self.flow(x.float())
        return flow


def warp(
    image: Float[Tensor, "N C H W"], flow: Float[Tensor, "N 2 H W"]
) -> Float[Tensor, "N C H W"]:
    """Move an image along a backward flow, with bilinear interpolation.

    Output pixel ``p`` is read at ``p + flow[p]``; reads past the border repeat the border.

    Source: Yilmaz et al. 2024, section 2, "Inference".

    Examples:
        >>> square = torch.zeros(1, 1, 5, 5)
        >>> square[..., 1, 2] = 1
        >>> up = torch.zeros(1, 2, 5, 5)
        >>> up[:, 0] = -1  # look one row up, so the dot goes one row down
        >>> warp(square, up).nonzero().tolist()
        [[0, 0, 2, 2]]
    """
    # Imported here: kornia takes longer to import than the rest of the package.
    from kornia.geometry.transform import remap

    count, _, height, width = image.shape
    if flow.shape != (count, 2, height, width):
        raise ValueError(
            "flow must hold one (dy, dx) in pixels for every pixel of image: "
            f"expected shape {(count, 2, height, width)}, got {tuple(flow.shape)}"
        )
    y = torch.arange(height, device=image.device)[:, None] + flow[:, 0]
    x = torch.arange(width, device=image.device)[None, :] + flow[:, 1]
    warped: Tensor = remap(
        image, x.to(image.dtype), y.to(image.dtype), padding_mode="border", align_corners=True
    )
    return warped


def invert_flow(flow: Float[Tensor, "N 2 H W"]) -> Float[Tensor, "N 2 H W"]:
    """Turn a backward flow into the forward one: where does a pixel of frame f go?

    Solves ``v(p) = -u(p + v(p))`` by a fixed-point iteration (Chen et al. 2008) with half steps.
    Whole steps would not converge where the flow stretches the rim of a nucleus to more than twice
    its width, as FlowNet's often does.
    """
    forward = -flow
    for _ in range(24):
        forward = 0.5 * (forward - warp(flow, forward))
    return forward
