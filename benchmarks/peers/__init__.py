"""Ways to do the same work, one module each. `Peer(folder, problem).works()` is all they share.

`folder` holds the model for `from_pretrained`, `problem` the tensors that `problem.py` describes.
`works()` gives a function of no arguments by the name of each work that this way can do. Its first
call may prepare and is not timed; every call returns the numbers that are compared with the
others'. A module runs in an environment of its own, without the project's helpers.
"""
