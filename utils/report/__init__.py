"""Finished runs -> tables, plots, and the page. Everything flows one way; read in this order:

table.py     runs -> chains (training, cut, fine-tuning) -> rows of raw numbers
groups.py    what a run was asked for: the settings that can change its result
summary.py   rows -> points, their means over seeds -> lines, a network from training to its end
together.py  which points may stand side by side;  label.py  what each of them is called
compare.py   methods against each other, seed by seed;  knee.py  where a sweep bends
origins.py   by which code, on which machine
story.py     all of the above, each made once: what every table, plot and page is given
tables.py    a story -> tables;  render.py  a table for every reader, and the templates
plots/       a story -> charts
page/        a story and its charts -> index.html and report.md, by templates
paper/       the published tables, with what the same story's runs have to say to each row
"""
