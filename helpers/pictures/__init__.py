"""Models that paint, and which of their layers read the text of the prompt."""

from helpers.pictures.pipelines import edited, injected, localise, text_layers
