"""The error of a run that cannot continue."""


class TrainingError(Exception):
    """Training cannot continue, through no fault of the options; the message is one line that says why and what to
    try. Commands end with code 1."""
