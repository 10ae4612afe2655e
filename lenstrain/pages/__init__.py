"""HTML pages of evaluation, audit and probes: one style, each page a single file."""

from lenstrain.pages.page import interval as interval
from lenstrain.pages.page import number as number
from lenstrain.pages.page import percent as percent
from lenstrain.pages.page import render as render
