"""The demo's one error."""

from adapterhub.errors import AdapterHubError


class DemoFailed(AdapterHubError):
    """A part of the demo did not do what it should; the text says which, and what it said."""
