import pytest

from builds import build_name, every_build
from fggp import native
from fggp.acceleration.kernels import kernels


@pytest.fixture(params=every_build(), ids=build_name, scope="module")
def build(request):
    """Each build of the kernels that this processor can run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "load", lambda: request.param)
        kernels.cache_clear()
        yield
    kernels.cache_clear()
