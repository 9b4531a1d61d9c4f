"""Errors of `mma_adapter`: each says what is wrong, shows both values, and names the way out.

MMAError
├── ConfigError           a setting that cannot work, or contradicts the model
├── UnsupportedHostError  a model this library does not know how to adapt
├── StorageError          an adapter file that is missing, damaged or does not fit
├── DataError             pictures, labels, class names or splits that cannot be used
└── TrainingError         a run that went wrong in a way that must not pass silently
"""


class MMAError(Exception):
    """Base class of every error this library raises on purpose."""


class ConfigError(MMAError, ValueError):
    """A setting that cannot work, or that contradicts the model it is for."""


class UnsupportedHostError(MMAError, TypeError):
    """A model this library does not know how to adapt."""


class StorageError(MMAError):
    """An adapter file that is missing, damaged, or does not fit the model."""


class DataError(MMAError, ValueError):
    """Pictures, labels, class names or splits that cannot be used as they are."""


class TrainingError(MMAError, RuntimeError):
    """A training run that went wrong in a way that must not pass silently."""
