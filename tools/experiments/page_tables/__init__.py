"""The tables of the pages: one module for each name of results, with a function for each table."""
