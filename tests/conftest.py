"""What all tests share: properties are tested without a time limit per example."""

from hypothesis import settings

# A busy machine makes any single example slow; how fast things are is measured elsewhere.
settings.register_profile("guardrail", deadline=None)
settings.load_profile("guardrail")
