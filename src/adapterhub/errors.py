"""The one root of every error adapterhub raises on purpose.

    AdapterHubError
    ├── adapterhub.storage.errors.StorageError
    ├── adapterhub.merging.errors.MergingError
    ├── adapterhub.hub.errors.HubError
    └── adapterhub.cli.errors.CliError
"""


class AdapterHubError(Exception):
    """Anything adapterhub refuses or cannot do; its text names the thing, what was found, and what to do."""
