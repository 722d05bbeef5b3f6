"""Settings of the property tests."""

from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing else.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
