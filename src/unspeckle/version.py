"""The version that is installed."""

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """For example "0.1.0"; "unknown" where the package runs without being installed."""
    try:
        return version("unspeckle")
    except PackageNotFoundError:
        return "unknown"
