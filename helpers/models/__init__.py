"""A model ready for patching: the one place that knows names, weights, devices and processing."""

from helpers.models.load import (
    PACKAGED,
    load_model,
    load_untrained,
    model_name,
    model_slug,
    norm_gain,
    process_weights,
)
from helpers.models.smollm import ModelError
