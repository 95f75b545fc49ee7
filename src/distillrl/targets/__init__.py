"""Export targets, one a file: each writes a plan (see ``plan``) as what runs in the product, and can play what it wrote.

``exporting.TARGETS`` is the table of them.
"""
