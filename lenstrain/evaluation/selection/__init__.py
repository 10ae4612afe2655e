"""The selection function: the share of lenses found, as a smooth function that others can use.

`axes` has the splines and what physics says about each axis, `fit` the monotone fit and its draws
by region, `function` the fitted function with its support, `population` its average over lenses of
a given population, `measure` all of it from a table of scores, `files` the artefact, `evaluator`
the program shipped with it.
"""
