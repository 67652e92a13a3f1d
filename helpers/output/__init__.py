"""What others read: figures in one style, files written in one step.

The modules are `plots` and `files`; nothing here knows of models or patches.
"""
