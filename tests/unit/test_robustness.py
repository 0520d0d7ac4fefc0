"""What people put into a transformer: labels, masks, half precision, nan, threads, arguments of another kind."""

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import config
from torch import nn

from stn import (
    Affine,
    Affine3d,
    Attention,
    Constrained,
    LinearForm,
    Projective,
    Regression,
    Rotation,
    Similarity,
    SpatialTransformer,
    ThinPlateSpline,
    Translation,
    aligned_corners_factors,
    convolutional,
    fully_connected,
    regular_grid,
    sample,
    trace,
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TRANSFORMS = [
    Affine(), Attention(), Translation(0.5), Projective(), ThinPlateSpline(), LinearForm((6, 5)), Similarity(1.2),
    Rotation(), Constrained(Affine(), {1: 0.0}), Affine3d(),
]  # fmt: skip
every_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: type(t).__name__)
SIZE = (6, 5, 4)


def sides(transform):
    return SIZE[: transform.dims]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool], ids=str)
@pytest.mark.parametrize("size", [(6, 5), (3, 6, 5)], ids=str)
def test_nearest_keeps_labels_exactly(dtype, size):
    torch.manual_seed(0)
    u = torch.randint(0, 2 if dtype == torch.bool else 200, (2, 3, *size)).to(dtype)
    if dtype == torch.int64:
        u += 2**60
    source = 2.4 * torch.rand(2, 30, len(size)) - 1.2
    out = (30, 1, 1)[: len(size)]
    v = sample(u, source, out, "nearest")
    assert v.dtype == dtype
    numbers = torch.arange(1.0, 1 + u[0, 0].numel()).view(1, 1, *size)
    place = sample(numbers.expand(2, -1, *size), source, out, "nearest")
    for b, c, i in np.ndindex(2, 3, 30):
        at = int(place[b, 0].flatten()[i])
        assert v[b, c].flatten()[i] == (u[b, c].flatten()[at - 1] if at else 0)


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_a_kernel_that_would_round_labels_is_refused(kernel):
    u = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=rf"^kernel '{kernel}' would round u of torch.uint8: choose 'nearest', or"):
        sample(u, regular_grid((4, 4))[None], (4, 4), kernel)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@every_transform
def test_a_whole_network_learns_in_every_dtype(transform, dtype, device):
    torch.manual_seed(0)
    shape = (1, *sides(transform))
    network = SpatialTransformer(fully_connected(shape, transform), transform).to(device, dtype)
    v = network(torch.rand(2, *shape, device=device).to(dtype))
    v.square().sum().backward()
    assert v.dtype == dtype
    assert v.isfinite().all()
    assert network.localisation[-1].bias.grad.isfinite().all()
    network.float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("kernel", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@every_transform
def test_a_theta_that_is_no_number_shows_in_v(transform, kernel, padding_mode, dtype, device):
    if kernel == "bicubic" and transform.dims == 3:
        return
    transform = transform.to(device)
    warp = SpatialTransformer(nn.Identity(), transform, None, kernel, padding_mode).warp
    theta = torch.tensor([transform.identity] * 2, device=device)
    theta[0] = torch.nan
    v = warp(torch.rand(2, 3, *sides(transform), device=device).to(dtype), theta)
    assert v[0].isnan().all()
    assert v[1].isfinite().all()


def test_one_entry_that_is_no_number_shows_in_v_and_the_others_stay():
    for kernel in ("bilinear", "nearest", "bicubic"):
        theta = torch.tensor([[1.0, torch.nan, 9.0]])
        v = SpatialTransformer(nn.Identity(), Attention(), None, kernel).warp(torch.rand(1, 1, 4, 4), theta)
        assert v.isnan().all()


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_padding_is_that_of_pytorch(padding_mode):
    torch.manual_seed(0)
    u, theta = torch.rand(2, 3, 5, 4), torch.tensor([Affine.identity] * 2) + torch.randn(2, 6)
    v = SpatialTransformer(nn.Identity(), Affine(), (6, 7), padding_mode=padding_mode).warp(u, theta)
    grid = F.affine_grid(theta.view(2, 2, 3), [2, 3, 6, 7], align_corners=False)
    expected = F.grid_sample(u, grid, padding_mode=padding_mode, align_corners=False)
    torch.testing.assert_close(v, expected, atol=1e-5, rtol=0)


def test_a_border_of_constant_features_stays_constant():
    u = torch.full((1, 1, 4, 4), -3.0)
    v = SpatialTransformer(nn.Identity(), Attention(), padding_mode="border").warp(u, torch.tensor([[3.0, 0.5, 0.0]]))
    assert (v == -3).all()


def test_a_linear_form_refuses_the_points_of_another_grid():
    form = LinearForm((4, 6))
    theta = torch.tensor([form.identity])
    with pytest.raises(ValueError, match=r"^this LinearForm has learnt B for an output of \(4, 6\), got \(6, 4\)$"):
        SpatialTransformer(nn.Identity(), form).warp(torch.rand(1, 1, 6, 4), theta)
    with pytest.raises(ValueError, match=r"^this LinearForm has learnt B for an output of \(4, 6\), got \(6, 4\)$"):
        SpatialTransformer(nn.Identity(), form, (6, 4))
    for target in (regular_grid((6, 4)), regular_grid((6, 4)).clone()):
        with pytest.raises(ValueError, match=r"for an output of \(4, 6\), got another target$"):
            form(theta, target)
    form(theta, regular_grid((4, 6)).clone())


class InThreads(nn.Module):
    """Two transformers, each called in a thread of a pool."""

    def __init__(self, start):
        super().__init__()
        starts = [(start, 0.0, 0.1 * i) for i in range(2)]
        localisations = [nn.Sequential(nn.Flatten(), Regression(16, Attention(), each)) for each in starts]
        self.looks = nn.ModuleList(SpatialTransformer(each, Attention()) for each in localisations)
        self.pool = ThreadPoolExecutor(2)

    def forward(self, u, other, *, scale):
        return sum(self.pool.map(lambda look: scale * look(u + other), self.looks))


def test_trace_sees_threads_and_takes_any_inputs():
    u = torch.rand(2, 1, 4, 4)
    warps = trace(InThreads(0.5), u, torch.ones(2, 1, 4, 4), scale=2)
    assert sorted(warp.name for warp in warps) == ["looks.0", "looks.1"]
    assert all(torch.equal(warp.u, u + 1) for warp in warps)


def test_traces_at_the_same_time_mix_nothing_up():
    networks = [InThreads(s) for s in (0.25, 0.5, 0.75)] * 2  # each of them twice
    inputs = [torch.full((1, 1, 4, 4), float(i)) for i in range(6)]

    def work(i):
        for _ in range(20):
            warps = trace(networks[i], inputs[i], torch.zeros(1, 1, 4, 4), scale=1)
            if len(warps) != 2 or any(w.theta[0, 0] != (0.25, 0.5, 0.75)[i % 3] or w.u[0, 0, 0, 0] != i for w in warps):
                return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(6)))
    assert all(module.training for network in networks for module in network.modules())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpatialTransformer(nn.Identity(), Affine(), 14), r"^Affine needs an out_size of 2 .*, got 14$"),
        (lambda: SpatialTransformer(nn.Identity(), Affine(), (14.0, 14.0)), r"an out_size of 2 .* \(14\.0, 14\.0\)$"),
        (
            lambda: SpatialTransformer(nn.Identity(), Affine),
            r"^the transform has to be an .*write Affine\(\)$",
        ),
        (lambda: SpatialTransformer(nn.Identity(), 3), r"^3 is not a transform: it needs num_params"),
        (lambda: SpatialTransformer(nn.Linear, Affine()), r"^the localisation has to be a module that maps u to theta"),
        (lambda: SpatialTransformer(nn.Identity(), Affine(), padding_mode="zero"), r"^unknown padding_mode 'zero': "),
        (lambda: SpatialTransformer(nn.Identity(), Affine3d(), kernel="bicubic"), r"^kernel 'bicubic' is for images"),
        (lambda: Regression(5, Affine), r"write Affine\(\)$"),
        (lambda: fully_connected((1, 4, 4), ThinPlateSpline), r"write ThinPlateSpline\(\)$"),
        (lambda: ThinPlateSpline(4.0), r"needs k >= 2 control points per side, got k = 4\.0$"),
        (lambda: LinearForm((4, 4), -1), r"^LinearForm needs a whole number of extra rows, 0 or more, got -1$"),
        (lambda: Projective(0.0), r"^min_z, the least depth of a point in front of the camera, .*, got 0\.0$"),
        (lambda: aligned_corners_factors(Affine, (5, 5), (5, 5)), r"write Affine\(\)$"),
        (lambda: LinearForm(14), r"^LinearForm needs a size of 2 positive whole numbers, got 14$"),
        (lambda: Similarity(0.0), r"^the aspect is W / H of the image, a positive number, got 0\.0$"),
        (
            lambda: Constrained(Affine(), {6: 0.0}),
            r"^Affine has the entries 0 to 5, .*: cannot fix \{6: 0\.0\}, a dict",
        ),
        (lambda: Constrained(Affine(), [1, 3]), r"^Affine has the entries 0 to 5, .*: cannot fix \[1, 3\], a dict"),
        (lambda: SpatialTransformer(Affine(), nn.Sequential(nn.ReLU())), r"^Sequential is not a transform: it needs"),
        (lambda: SpatialTransformer(nn.Identity(), Affine(), (True, 4)), r"an out_size of 2 .* \(True, 4\)$"),
        (lambda: Translation(float("nan")), r"^the scale of a Translation is a number other than 0, got nan$"),
        (lambda: Translation(0.0), r"^the scale of a Translation is a number other than 0, got 0\.0$"),
        (lambda: Similarity(float("inf")), r"^the aspect is W / H of the image, a positive number, got inf$"),
        (lambda: regular_grid(8), r"^a regular grid needs a size such as \(H, W\) .*, got 8 and torch\.float32$"),
        (lambda: regular_grid((4, 4), torch.int64), r"^a regular grid needs .*, got \(4, 4\) and torch\.int64$"),
        (lambda: regular_grid((4, -1)), r"^a regular grid needs sides of at least one pixel, got \(4, -1\)$"),
        (lambda: sample(torch.rand(1, 1, 4, 4), torch.zeros(1, 8, 2), 8), r"^sample takes u .*, size 8$"),
        (lambda: convolutional((1, 24, 28), Affine()), r"^convolutional takes .* 26 x 26 px, got \(1, 24, 28\)$"),
        (lambda: Regression.from_linear(nn.Sequential(), Affine()), r"^from_linear takes an nn\.Linear, .*Sequential$"),
        (lambda: trace(torch.relu, torch.zeros(1)), r"^trace takes a network, an nn\.Module, got builtin_"),
        (
            lambda: SpatialTransformer(nn.MaxPool2d(2, return_indices=True), Affine())(torch.rand(1, 1, 4, 4)),
            r"^the localisation has to return theta \(B, P\), got tuple$",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named_at_construction(build, message, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in production, where signatures are not checked
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def homogeneous_matrix(transform, theta):
    """The matrix of a plane map, from where it sends four points."""
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    t, x, y = transform(theta, points)[0]
    return torch.stack([x - t, y - t, t], dim=1)


@pytest.mark.parametrize(
    "transform", [Affine(), Attention(), Translation(), Projective(), Similarity(1.6), Rotation(1.6), Affine3d()],
    ids=lambda t: type(t).__name__,
)  # fmt: skip
def test_inverse_and_compose_are_those_of_maps(transform):
    torch.manual_seed(0)
    start = torch.tensor([transform.identity] * 4, dtype=torch.float64)
    outer, inner = (start + 0.2 * torch.randn_like(start) for _ in range(2))
    target = 0.5 * torch.rand(9, transform.dims, dtype=torch.float64)
    both = transform(transform.compose(outer, inner), target)
    for b in range(4):
        once = transform(inner[b : b + 1], target)[0]
        torch.testing.assert_close(both[b], transform(outer[b : b + 1], once)[0])
        back = transform(transform.inverse(inner)[b : b + 1], once)[0]
        torch.testing.assert_close(back, target)


@pytest.mark.parametrize("transform", [Affine(), Attention(), Similarity(0.7)], ids=lambda t: type(t).__name__)
def test_the_inverse_is_that_of_the_matrix(transform):
    torch.manual_seed(0)
    theta = (
        torch.tensor([transform.identity], dtype=torch.float64) + 0.2 * torch.randn(1, transform.num_params).double()
    )
    last = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    matrix, inverse = (torch.cat([homogeneous_matrix(transform, t), last]) for t in (theta, transform.inverse(theta)))
    torch.testing.assert_close(inverse, torch.linalg.inv(matrix))


def test_a_projective_map_from_behind_the_camera_has_no_theta():
    turned = torch.tensor([[1.0, 0, 0, 0, 1, 0, 2, 0]])  # Z = 1 + 2 x: its inverse has Z = 1 - 2 x
    beyond = torch.tensor([[1.0, 0, 2, 0, 1, 0, 0, 0]])  # moved by 2, to Z = -3
    projective = Projective()
    assert projective.inverse(turned).isfinite().all()
    assert projective.compose(projective.inverse(turned), beyond).isnan().all()
    assert projective.inverse(projective.compose(turned, beyond)).isfinite().all()
    swapped = torch.tensor([[1.0, 0, 2, 0, 1, 0, 1, 0]])  # the centre of its source lies behind the camera
    assert projective.inverse(swapped).isnan().all()


def test_sizes_may_be_numbers_of_numpy(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    two, four = np.int64(2), np.int32(4)
    transformer = SpatialTransformer(
        fully_connected((1, 4, 4), ThinPlateSpline(two)), ThinPlateSpline(two), (four, two)
    )
    assert transformer(torch.rand(1, 1, 4, 4)).shape == (1, 1, 4, 2)
    assert LinearForm((four, two), two).num_params == 10


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        (Translation(0.5), "Translation(scale=0.5)"), (Similarity(1.5), "Similarity(aspect=1.5)"),
        (Rotation(), "Rotation(aspect=1)"), (Projective(), "Projective(min_z=0.01)"),
        (ThinPlateSpline(3), "ThinPlateSpline(k=3)"), (LinearForm((2, 3), 1), "LinearForm(size=(2, 3), extra=1)"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_a_printed_module_shows_its_settings(module, shown):
    assert repr(module) == shown
    assert "out_size=(2, 3), kernel='bilinear'" in repr(SpatialTransformer(nn.Identity(), module, (2, 3)))
    assert "fixed={0: 1.0}" in repr(Constrained(Affine(), {0: 1.0}))


@every_transform
def test_theta_of_another_dtype_than_the_points_is_promoted(transform):
    target = regular_grid(sides(transform))
    theta = torch.tensor([transform.identity]) + 0.1 * torch.randn(1, transform.num_params)
    half = theta.bfloat16()
    torch.testing.assert_close(transform(half, target), transform(half.float(), target), atol=0.02, rtol=0.02)
    assert transform(half, target).dtype == torch.float32
    double = transform(theta.double(), target)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), transform(theta, target))


@pytest.mark.parametrize(
    "transform", [Affine(), Attention(), Translation(), Projective(), Similarity(), Rotation(), Affine3d()],
    ids=lambda t: type(t).__name__,
)  # fmt: skip
def test_inverse_and_compose_name_a_theta_of_another_shape(transform, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    good, bad = torch.zeros(2, transform.num_params), torch.zeros(2, transform.num_params + 1)
    for call in (lambda: transform.inverse(bad), lambda: transform.compose(good, bad)):
        with pytest.raises(
            ValueError, match=rf"^{type(transform).__name__} takes theta \(B, {transform.num_params}\), got"
        ):
            call()


@pytest.mark.parametrize("transform", [Similarity(), Rotation()], ids=lambda t: type(t).__name__)
def test_squares_of_aligned_corners_convert_with_a_rotation(transform):
    theta = torch.tensor([transform.identity]) + 0.3
    side = 5 if isinstance(transform, Rotation) else 7
    there, out = torch.linspace(-1, 1, side), (side, side)
    y, x = torch.meshgrid(there, there, indexing="ij")
    u = torch.rand(1, 1, 5, 5)
    grid = transform(theta, torch.stack([x, y], dim=-1).flatten(0, 1)).view(1, side, side, 2)
    expected = F.grid_sample(u, grid, align_corners=True)
    factors = torch.tensor(aligned_corners_factors(transform, (5, 5), out))
    torch.testing.assert_close(sample(u, transform(factors * theta, regular_grid(out)), out), expected)
    with pytest.raises(ValueError, match=r"has no theta that samples the points of align_corners=True"):
        aligned_corners_factors(transform, (5, 6), (5, 6))


def test_a_translation_of_another_scale_has_no_inverse():
    with pytest.raises(ValueError, match=r"^the result is not a Translation\(0\.5\), .*: use Attention instead$"):
        Translation(0.5).inverse(torch.zeros(1, 2))


@pytest.mark.parametrize("transform", [Rotation(aspect=2.0), Similarity(aspect=2.0)], ids=lambda t: type(t).__name__)
def test_a_rotation_with_the_aspect_is_one_in_pixels(transform):
    u = torch.zeros(1, 1, 40, 80)
    u[..., 18:22, 30:50] = 1  # a bar, 20 x 4 px
    theta = torch.tensor([transform.identity])
    theta[0, -1 if transform.num_params == 1 else 1] = torch.pi / 2
    v = SpatialTransformer(nn.Identity(), transform).warp(u, theta)
    expected = torch.zeros_like(u)
    expected[..., 10:30, 38:42] = 1
    torch.testing.assert_close(v, expected, atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:.*jit.script.*")
def test_a_localisation_is_traced_by_fx_and_refused_by_script(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in production, where signatures are not checked
    network, u = fully_connected((1, 4, 4), Affine()), torch.rand(2, 1, 4, 4)
    nn.init.normal_(network[-1].weight)
    graph = torch.fx.symbolic_trace(network)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert graph(u).dtype == torch.float32
        assert torch.equal(graph(u), network(u))
    with pytest.raises(TypeError, match=r"^torch\.jit\.script cannot compile a Regression: use torch\.export") as error:
        torch.jit.script(network)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore:.*jit.script.*")
def test_fx_and_script_say_what_to_use():
    network = nn.Sequential(SpatialTransformer(fully_connected((1, 4, 4), Affine()), Affine()))
    with pytest.raises(TypeError, match=r"^torch\.jit\.script cannot compile .*: use torch\.export") as error:
        torch.jit.script(network)
    assert "\n" not in str(error.value)

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, SpatialTransformer) or super().is_leaf_module(module, name)

    graph = torch.fx.GraphModule(network, Tracer().trace(network))
    u = torch.rand(2, 1, 4, 4)
    assert torch.equal(graph(u), network(u))


def test_symbolic_trace_says_how_to_make_a_transformer_a_leaf(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # as in production, where signatures are not checked
    network = nn.Sequential(SpatialTransformer(fully_connected((1, 4, 4), Affine()), Affine()), nn.Conv2d(1, 2, 3))
    with pytest.raises(TypeError, match=r"^torch\.fx cannot trace into .* make it a leaf, .*leaf_modules") as error:
        torch.fx.symbolic_trace(network)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, of a deprecated exporter
@pytest.mark.parametrize("transform", TRANSFORMS[:-1], ids=lambda t: type(t).__name__)
def test_the_legacy_exporter_and_jit_trace_take_transforms(transform, monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)  # its checks read the tensors that these two trace
    onnxruntime = pytest.importorskip("onnxruntime")
    network = SpatialTransformer(fully_connected((1, 6, 5), transform), transform)
    nn.init.normal_(network.localisation[-1].weight, std=0.1)
    u = torch.rand(2, 1, 6, 5)
    file = BytesIO()
    torch.onnx.export(network, (u,), file, input_names=["u"], dynamo=False)
    (v,) = onnxruntime.InferenceSession(file.getvalue()).run(None, {"u": u.numpy()})
    torch.testing.assert_close(torch.from_numpy(v), network(u).detach(), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.jit.trace(network, (u,))(u), network(u))


def test_norms_of_a_regression_are_nan_as_its_docstring_says():
    for norm in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        assert norm(Regression(5, Affine()))(torch.rand(1, 5)).isnan().all()
    assert "`weight_norm` and `spectral_norm` on it give nan" in " ".join(Regression.__doc__.split())
