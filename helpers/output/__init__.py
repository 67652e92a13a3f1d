"""What others read: figures in one style, pages and tables, files written in one step.

The modules are `plots`, `pages` and `files`; nothing here knows of models or patches.
"""
