"""Reads what other code bases published: pickles, state dicts and arrays of objects, executing nothing of theirs."""
