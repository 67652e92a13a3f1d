"""A model ready for patching, `load_model()`: what knows names, weights, devices, processing."""

from helpers.models.load import PACKAGED, Model, load_model, model_name, model_slug, norm_gain
from helpers.models.smollm import ModelError
