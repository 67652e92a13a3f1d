"""Painted words: signs, a painter that reads prompts, a reader of what it paints.

A room of its own: a diffusion model where the others have a language model. `tools.pictures` trains
painters, and does the same to the pipelines of `diffusers`.
"""

from helpers.pictures.drawing import Sign, pairs, render, signs, strip, tokenize
from helpers.pictures.painter import Injection, Painter, load_painter, noise, sample
from helpers.pictures.reader import agreement, load_reader
