"""Finished runs -> tables, plots, and the page. Everything flows one way; read in this order:

table.py     runs -> chains (training, cut, fine-tuning) -> rows of raw numbers -> text
groups.py    which rows may be averaged: those that differ in their seed and in nothing else
summary.py   rows -> points, the means over seeds -> a line per network and ratio
compare.py   methods against each other, seed by seed;  knee.py  where a sweep bends
origins.py   by which code, on which machine
story.py     all of the above, each made once: what every plot and page is given
plots/       a story -> one figure each
page/        a story and its figures -> index.html and report.md, by templates
paper/       the published tables, with what the same story's runs have to say to each row
render.py    a table of text for every reader, and the templates' escaping
"""
