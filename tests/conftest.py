"""What all tests share: event loops, properties without a time limit, one kernel, a cache."""

import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A busy machine makes any single example slow; how fast things are is measured elsewhere.
settings.register_profile("guardrail", deadline=None)
settings.load_profile("guardrail")


@pytest.fixture(autouse=True, scope="session")
def same_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Run models as they are stored, whatever is fastest here, and leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GUARDRAIL_KERNEL", "int4")
        patch.setenv("GUARDRAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


no_uvloop = pytest.mark.skipif(sys.platform == "win32", reason="uvloop doesn't run there")


DEFAULTS: dict[str, bool] = {}


@pytest.fixture(
    params=[
        pytest.param(("asyncio", DEFAULTS), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=no_uvloop),
        pytest.param(("trio", DEFAULTS), id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Run every test that is marked `anyio` on each event loop that guards support."""
    return request.param
