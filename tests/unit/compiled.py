"""Every transform through torch.compile and torch.export; test_constants.py runs it in a process of its own."""

import torch
from torch import nn

from stn import (
    Affine,
    Affine3d,
    Attention,
    Projective,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    fully_connected,
    trace,
)
from stn import regular_grid as grid

DYNAMIC, AUTO = torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO

for transform in (Affine(), Projective(), ThinPlateSpline(), Attention(), Similarity(), Affine3d()):
    torch.manual_seed(0)
    sides, pool = (8, 9, 7)[: transform.dims], (nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[transform.dims - 2]
    f_loc = nn.Sequential(pool(2), fully_connected((2**transform.dims,), transform))
    nn.init.normal_(f_loc[-1][-1].weight, std=0.1)
    u = torch.rand(2, 1, *sides)
    network = SpatialTransformer(f_loc, transform)
    v = torch.compile(network, fullgraph=True, backend="eager")(u)
    v.sum().backward()
    torch.testing.assert_close(v, network(u))
    axes = {0: AUTO} | {2 + i: DYNAMIC for i in range(len(sides))}
    program = torch.export.export(network, (u,), dynamic_shapes=(axes,))
    other = torch.rand(3, 1, *(n + 5 for n in sides))
    torch.testing.assert_close(program.module()(other), network(other))
    assert type(grid(u.shape[2:])) is type(grid(other.shape[2:])) is torch.Tensor
    torch.compiler.reset()

network = SpatialTransformer(fully_connected((1, 8, 9), spline := ThinPlateSpline()), spline, (5, 6))
program = torch.export.export(network, (u := torch.rand(2, 1, 8, 9),), strict=True)
torch.testing.assert_close(program.module()(u), network(u))

affine = torch.compile(Affine(), backend="eager")  # whose wrapper isinstance does not see through
torch.testing.assert_close(SpatialTransformer(fully_connected((1, 8, 9), affine), affine)(u), u)

compiled, inputs = torch.compile(nn.Sequential(network), backend="eager"), (torch.rand(2, 1, 8, 9) for _ in range(2))
for u in inputs:  # before and after its first run
    (warp,) = trace(compiled, u)
    assert torch.equal(warp.u, u)
    torch.testing.assert_close(warp.v, compiled(u))
