"""Cached grids and matrices: real, shared, bounded, blind to what the caller is doing, and in nobody's state."""

import gc
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from unittest import mock

import pytest
import torch
from jaxtyping import config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from stn import Affine, Attention, Projective, SpatialTransformer, ThinPlateSpline, fully_connected, regular_grid
from stn import spline as module
from stn.constants import Constants
from stn.matrices import BASES
from stn.sampler import GRIDS

CPU = torch.device("cpu")
every_transform = pytest.mark.parametrize(
    "transform", [Affine(), Projective(), ThinPlateSpline(), Attention()], ids=lambda t: type(t).__name__
)


@pytest.fixture(autouse=True)
def nothing_cached(monkeypatch):
    """Every test starts with empty caches."""
    for constants in (GRIDS, BASES):
        monkeypatch.setattr(constants, "_cached", type(constants._cached)())
        monkeypatch.setattr(constants, "_keys", {})


def transformer(transform, size=(17, 19)):
    torch.manual_seed(0)
    network = SpatialTransformer(fully_connected((1, 8, 8), transform), transform, size)
    nn.init.normal_(network.localisation[-1].weight, std=0.1)
    return network


@every_transform
def test_an_export_leaves_no_fake_tensor(transform):
    network, u = transformer(transform), torch.rand(2, 1, 8, 8)
    program = torch.export.export(network, (u,))
    assert type(regular_grid((17, 19))) is torch.Tensor
    torch.testing.assert_close(program.module()(u), network(u))


@pytest.mark.slow  # half a minute of compiling
def test_compilers_take_every_transform_as_one_graph():
    # without the checks of jaxtyping's hook, which PyTorch's tracer does not understand
    done = subprocess.run([sys.executable, Path(__file__).with_name("compiled.py")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@every_transform
def test_a_fake_gpu_leaves_nothing_and_takes_nothing_real(transform):
    regular_grid((17, 19))
    with FakeTensorMode(allow_non_fake_inputs=False), torch.device("cuda"):
        transform(torch.rand(2, transform.num_params), regular_grid((17, 19), device="cuda"))
        v = transformer(type(transform)())(torch.rand(2, 1, 8, 8))
        assert isinstance(v, FakeTensor)
        assert v.device.type == "cuda"
    assert type(regular_grid((17, 19))) is torch.Tensor


@every_transform
def test_functorch_first_leaves_nothing_wrapped(transform):
    warp, u = SpatialTransformer(nn.Identity(), transform, (11, 9)).warp, torch.rand(2, 1, 8, 8)
    theta = torch.tensor([transform.identity] * 2) + 0.1 * torch.randn(2, transform.num_params)
    gradient = torch.func.grad(lambda theta: warp(u, theta).square().sum())(theta)
    torch.func.functionalize(SpatialTransformer(nn.Identity(), transform, (11, 8)).warp)(u, theta)
    theta.requires_grad_()
    (expected,) = torch.autograd.grad(warp(u, theta).square().sum(), theta)
    torch.testing.assert_close(gradient, expected)
    SpatialTransformer(nn.Identity(), transform, (11, 8)).warp(u, theta).sum().backward()


@every_transform
def test_vmap_over_theta_is_a_loop_over_it(transform):
    warp = SpatialTransformer(nn.Identity(), transform, (11, 7)).warp
    theta = torch.tensor(transform.identity) + 0.1 * torch.randn(3, 2, transform.num_params)
    u = torch.rand(3, 2, 1, 8, 8)
    expected = torch.stack([warp(*pair) for pair in zip(u, theta, strict=True)])
    torch.testing.assert_close(torch.vmap(warp)(u, theta), expected)


def test_points_mapped_over_are_not_cached():
    spline, target = ThinPlateSpline(), torch.rand(3, 6, 2)
    bases = torch.vmap(spline.basis)(target)
    torch.testing.assert_close(bases, torch.stack([spline.basis(points) for points in target]))


def test_a_default_device_does_not_reach_what_is_cached():
    with torch.device("meta"):
        grid = regular_grid((5, 6), device="cpu")
        basis = ThinPlateSpline().basis(grid)
    assert grid.device == basis.device == CPU
    assert basis.isfinite().all()


@every_transform
def test_what_inference_mode_made_can_be_trained_with(transform):
    network, u = transformer(transform), torch.rand(2, 1, 8, 8)
    with torch.inference_mode():
        network(u)
    network(u).sum().backward()


def test_a_grid_that_is_written_into_is_made_anew():
    spline, grid = ThinPlateSpline(), regular_grid((5, 6))
    expected, basis = grid.clone(), spline.basis(grid).clone()
    spline.basis(grid).mul_(2)
    torch.testing.assert_close(spline.basis(grid), basis)
    grid.mul_(2)
    torch.testing.assert_close(regular_grid((5, 6)), expected)
    torch.testing.assert_close(spline.basis(regular_grid((5, 6))), basis)
    torch.testing.assert_close(spline.basis(grid), spline.basis(2 * expected))
    affine = Affine()(torch.tensor([Affine.identity]), grid)
    torch.testing.assert_close(affine[0], 2 * expected)


def test_two_sizes_in_turn_are_made_once_each():
    with mock.patch.object(module, "_spline_of_grid", side_effect=module._spline_of_grid) as made:
        for _ in range(3):
            for size in ((5, 6), (6, 5)):
                for spline in (ThinPlateSpline(), ThinPlateSpline()):  # replicas
                    spline.basis(regular_grid(size))
    assert made.call_count == 2


def test_a_matrix_is_of_its_dtype_and_its_number_of_points():
    for dtype in (torch.float32, torch.float64):
        for k in (3, 4):
            basis = ThinPlateSpline(k).basis(regular_grid((5, 6), dtype))
            assert (basis.dtype, basis.shape) == (dtype, (k * k, 30))


@pytest.mark.parametrize("k", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [(1, 1), (1, 6), (7, 2), (8, 5), (33, 40)], ids=str)
def test_a_matrix_from_a_quarter_is_that_of_all_points(k, size):
    of_grid = ThinPlateSpline(k).basis(regular_grid(size, torch.float64))
    of_points = ThinPlateSpline(k).basis(regular_grid(size, torch.float64).clone())
    torch.testing.assert_close(of_grid, of_points, atol=1e-12, rtol=0)


@every_transform
@pytest.mark.parametrize("write", [
    lambda points: points.numpy().__imul__(0.5), lambda points: points.data.mul_(0.5), lambda points: points.mul_(0.5),
], ids=["numpy", "data", "in place"])  # fmt: skip
def test_points_of_your_own_may_change_between_two_calls(transform, write):
    theta, target = torch.tensor([transform.identity]) + 0.1 * torch.randn(1, transform.num_params), torch.rand(7, 2)
    transform(theta, target)
    write(target)
    torch.testing.assert_close(transform(theta, target), transform(theta, target.clone()))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace.*` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the checks of shapes, which hold for the trace
@every_transform
def test_points_of_your_own_are_an_input_of_a_traced_graph(transform, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # its checks read values, which a tracer warns of
    theta, target = torch.tensor([transform.identity]) + 0.1 * torch.randn(1, transform.num_params), torch.rand(7, 2)
    for graph in (torch.jit.trace(transform, (theta, target)), make_fx(transform)(theta, target)):
        torch.testing.assert_close(graph(theta, target / 2), transform(theta, target / 2))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # PyTorch's own, by make_dual
@every_transform
def test_a_tangent_of_the_points_reaches_the_source(transform):
    theta = torch.tensor([transform.identity]) + 0.1 * torch.randn(1, transform.num_params)
    target, tangent = torch.rand(7, 2, dtype=torch.float64) / 2, torch.randn(7, 2, dtype=torch.float64)
    transform(theta.double(), target)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(target, tangent)
        moved = torch.autograd.forward_ad.unpack_dual(transform(theta.double(), dual)).tangent
    ahead, back = (transform(theta.double(), target + step * tangent) for step in (1e-6, -1e-6))
    torch.testing.assert_close(moved, (ahead - back) / 2e-6, atol=1e-6, rtol=1e-6)


@every_transform
def test_a_grid_told_to_need_a_gradient_is_nobody_elses(transform):
    grid = regular_grid((5, 7)).requires_grad_()
    transform(torch.tensor([transform.identity]), grid).sum().backward()
    assert grid.grad.isfinite().all()
    assert not regular_grid((5, 7)).requires_grad


@every_transform
def test_a_forward_on_meta_has_the_shape_of_a_real_one(transform):
    network = transformer(transform).to("meta")
    v = network(torch.rand(2, 1, 8, 8, device="meta"))
    assert (v.shape, v.device.type) == ((2, 1, 17, 19), "meta")


def test_a_new_size_is_made_after_the_main_thread_ended():
    code = """
import threading
from stn import ThinPlateSpline, regular_grid
def late():
    threading.main_thread().join()
    print(ThinPlateSpline().basis(regular_grid((3, 5))).shape[1])
threading.Thread(target=late).start()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("15\n", "")


def test_points_that_need_a_gradient_get_it():
    spline, target = ThinPlateSpline(), torch.rand(7, 2, dtype=torch.float64, requires_grad=True)
    theta = torch.tensor([spline.identity], dtype=torch.float64)
    for _ in range(2):
        (gradient,) = torch.autograd.grad(spline(theta, target).sum(), target)
        torch.testing.assert_close(gradient, torch.ones(7, 2, dtype=torch.float64))  # at the identity


def test_threads_with_sizes_of_their_own_mix_nothing_up():
    sizes, spline = [(5, 6), (7, 4), (6, 5), (8, 3)], ThinPlateSpline()
    theta = torch.tensor([spline.identity]) + 0.1 * torch.randn(1, 32)
    expected = {size: spline(theta, regular_grid(size)) for size in sizes}

    def work(seed):
        drawn = random.Random(seed).choices(sizes, k=300)
        return sum(not torch.equal(spline(theta, regular_grid(size)), expected[size]) for size in drawn)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [0] * 4


def test_what_is_cached_is_bounded_in_bytes_oldest_use_first():
    constants, made = Constants(limit_bytes=100), []

    def get(key, nbytes=40):
        def make():
            made.append(key)
            return torch.zeros(nbytes, dtype=torch.uint8)

        return constants.get(key, make, CPU)

    for key in "ababcab":
        get(key)
    assert made == ["a", "b", "c", "a", "b"]
    assert constants.nbytes == 80
    get("large", 101)
    assert constants.nbytes == 80  # what does not fit at all drops nothing
    get("large", 101)
    assert made[5:] == ["large", "large"]


def test_what_fails_to_be_made_is_said_and_not_cached():
    constants = Constants(100)
    with pytest.raises(ZeroDivisionError):
        constants.get("a", lambda: torch.zeros(1 // 0), CPU)
    assert constants.get("a", lambda: torch.zeros(1), CPU).shape == (1,)


def test_pickles_copies_and_states_carry_nothing_that_is_cached():
    spline = ThinPlateSpline()
    before = len(pickle.dumps(spline))
    theta = torch.tensor([spline.identity])
    source = spline(theta, regular_grid((224, 224)))
    assert len(pickle.dumps(spline)) == before < 5000
    assert not spline.state_dict()
    assert torch.equal(deepcopy(spline)(theta, regular_grid((224, 224))), source)


@pytest.mark.gpu
@every_transform
def test_a_captured_step_copies_nothing_and_outlives_the_cache(transform):
    transform = transform.cuda()
    u, theta = torch.rand(2, 1, 8, 8).cuda(), torch.tensor([transform.identity] * 2).cuda()
    warp = SpatialTransformer(nn.Identity(), transform, (17, 19)).warp
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        expected = warp(u, theta)
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        v = warp(u, theta)
    for constants in (GRIDS, BASES):
        constants._cached.clear()
        constants._keys.clear()
    gc.collect()
    torch.cuda.empty_cache()
    torch.rand(2**22, device="cuda")
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(v, expected)
