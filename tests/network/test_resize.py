"""Images of another size: what the library computes is PyTorch's, and what does not fit is refused."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from networks import Refused, build, closing, run_one

threads = st.sampled_from([1, 2])
NAMES = {1: "linear", 2: "bilinear", 3: "trilinear"}
NEAREST = {"nearest": "nearest", "nearest_exact": "nearest-exact"}


def near(found, expected):
    """The same up to how PyTorch rounds the places of pixels: in single precision."""
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-5, atol=2e-5)


def drawn(data, spatial, least=1):
    most = {1: 70, 2: 24, 3: 9}[spatial]
    x = torch.randn(data.draw(st.integers(1, 3)), 2, *(data.draw(st.integers(least, most)) for _ in range(spatial)))
    return x, [data.draw(st.integers(1, 2 * most)) for _ in range(spatial)]


@pytest.mark.parametrize("mode", NEAREST)
@given(threads, st.integers(1, 3), st.data())
def test_nearest(mode, threads, spatial, data):
    x, size = drawn(data, spatial)
    expected = F.interpolate(x, size, mode=NEAREST[mode])
    assert torch.equal(run_one("resize", [x], threads=threads, size=size, mode=mode), expected)


@pytest.mark.parametrize("mode", NEAREST)
def test_nearest_of_all_small_sizes(mode):
    """The pixel that is nearest depends on the last bits."""
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": ["N", 1, "W"]}],
        "nodes": [{"op": "resize", "in": [0], "size": [size], "mode": mode} for size in range(1, 130)],
        "outputs": [{"name": str(size), "value": size} for size in range(1, 130)],
    }
    with closing(build(description)) as made:
        for width in range(1, 70):
            x = torch.arange(width, dtype=torch.float32)[None, None]
            for size, found in made.run({"x": x}).items():
                assert torch.equal(found, F.interpolate(x, int(size), mode=NEAREST[mode])), (width, size)


@given(threads, st.integers(1, 3), st.booleans(), st.data())
def test_linear(threads, spatial, align_corners, data):
    x, size = drawn(data, spatial)
    expected = F.interpolate(x, size, mode=NAMES[spatial], align_corners=align_corners)
    found = run_one("resize", [x], threads=threads, size=size, mode="linear", align_corners=align_corners)
    near(found, expected)


@given(threads, st.booleans(), st.data())
def test_cubic(threads, align_corners, data):
    x, size = drawn(data, 2)
    expected = F.interpolate(x, size, mode="bicubic", align_corners=align_corners)
    found = run_one("resize", [x], threads=threads, size=size, mode="cubic", align_corners=align_corners)
    near(found, expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_cubic_of_other_dimensions(align_corners):
    """PyTorch has it for images only: a row is an image whose columns are alike; a volume is resized in parts."""
    given = {"mode": "cubic", "align_corners": align_corners}
    x = torch.randn(2, 3, 11)
    expected = F.interpolate(x[..., None].expand(2, 3, 11, 4), (17, 4), mode="bicubic", align_corners=align_corners)
    near(run_one("resize", [x], size=[17], **given), expected[..., 0])
    x = torch.randn(1, 2, 5, 6, 7)
    planes = F.interpolate(x[0], (9, 4), mode="bicubic", align_corners=align_corners)  # of each channel's 5 planes
    rows = planes.permute(2, 0, 3, 1).reshape(9, 2, 4, 5)
    expected = F.interpolate(rows, (4, 8), mode="bicubic", align_corners=align_corners).permute(1, 3, 0, 2)[None]
    near(run_one("resize", [x], size=[8, 9, 4], **given), expected)


@given(threads, st.sampled_from(["nearest", "nearest_exact", "linear", "cubic"]), st.data())
def test_factors(threads, mode, data):
    x, _ = drawn(data, 2, least=4)
    factors = [data.draw(st.sampled_from([0.3, 0.5, 0.77, 1.0, 1.3, 2.0, 2.5])) for _ in range(2)]
    torch_mode = {"linear": "bilinear", "cubic": "bicubic", **NEAREST}[mode]
    expected = F.interpolate(x, scale_factor=factors, mode=torch_mode)
    found = run_one("resize", [x], threads=threads, size=list(expected.shape[2:]), mode=mode, scales=factors)
    near(found, expected)
    size = [expected.shape[2], 2 * x.shape[3]]
    mixed = run_one("resize", [x], threads=threads, size=size, mode=mode, scales=[factors[0], None])
    near(mixed, F.interpolate(x, scale_factor=(factors[0], 2.0), mode=torch_mode))


@pytest.mark.parametrize("mode", ["nearest", "nearest_exact", "linear", "cubic"])
@pytest.mark.parametrize(
    ("size", "to"), [((1, 5, 60, 61), (120, 122)), ((2, 3, 200, 180), (64, 301)), ((1, 2, 40, 40), (40, 80))]
)
def test_large_images(mode, size, to):
    x = torch.randn(size)
    expected = F.interpolate(x, to, mode={"linear": "bilinear", "cubic": "bicubic", **NEAREST}[mode])
    for threads in (1, 2):
        near(run_one("resize", [x], threads=threads, size=to, mode=mode), expected)


def test_exact_places():
    """Twice as many pixels lie at quarters, so that the result is exact up to one rounding in each sum."""
    x = torch.randn(2, 3, 30, 31)
    exact = F.interpolate(x.double(), (60, 62), mode="bilinear")
    found = run_one("resize", [x], size=[60, 62], mode="linear")
    assert torch.allclose(found.double(), exact, rtol=1e-6, atol=1e-6)


def test_nan_stays_in_its_row_and_column():
    x = torch.randn(1, 1, 9, 9)
    x[0, 0, 4, 4] = float("nan")
    found = run_one("resize", [x], size=[18, 9], mode="linear")[0, 0].isnan()
    assert found.any()
    assert not found[:, :4].any()
    assert not found[:, 5:].any()


def test_nothing():
    for shape in ((0, 3, 8, 8), (2, 0, 8, 8)):
        assert run_one("resize", [torch.zeros(shape)], size=[4, 5], mode="linear").shape == (*shape[:2], 4, 5)
    assert run_one("resize", [torch.zeros(1, 2, 3)], size=[0], mode="nearest").shape == (1, 2, 0)


X = torch.zeros(1, 2, 8, 8)
PLAIN = {"size": [4, 4], "mode": "linear"}


@pytest.mark.parametrize(
    ("x", "attributes", "message"),
    [
        (X.long(), {}, "its input is I64"),
        (X[0, 0], {}, "does not have 3 to 5 dimensions"),
        (X[0], {}, '"size" has 2 numbers'),
        (X[:, :, :0], {}, "a dimension of a wrong size"),
        (X, {"size": [-1, 4]}, "cannot have the shape"),
        (X, {"size": [2**40, 2**40]}, "too large"),
        (X, {"mode": "area"}, '"mode" is "area", and must be nearest'),
        (X, {"mode": "nearest", "align_corners": True}, "cannot align corners"),
        (X, {"align_corners": 1}, '"align_corners" is not true or false'),
        (X, {"scales": [1.0]}, '"scales" is no list of 2 numbers'),
        (X, {"scales": [0, 1]}, "no number above 0"),
        (X, {"scales": ["nan", 1]}, "no number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(x, attributes, message):
    with pytest.raises(Refused, match=message):
        run_one("resize", [x], **{**PLAIN, **attributes})


@pytest.mark.parametrize("mode", ["nearest", "nearest_exact", "linear", "cubic"])
def test_hostile_factors_read_nothing_outside(mode):
    x = torch.randn(1, 1, 5, 5)
    for factor in (1e-300, 1e-30, 1e30, 1e300):
        found = run_one("resize", [x], size=[7, 7], mode=mode, scales=[factor, factor])
        assert found.isfinite().all()
