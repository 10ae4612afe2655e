"""Pages of what evaluation, audit and probes found: one look, and nothing beside the file."""

from lenstrain.pages.page import interval as interval
from lenstrain.pages.page import number as number
from lenstrain.pages.page import percent as percent
from lenstrain.pages.page import render as render
