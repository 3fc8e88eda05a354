"""What all tests share: properties without a time limit, one kernel, and a cache of their own."""

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
