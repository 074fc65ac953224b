"""Generators and discriminators, one family a file, on the layers they share."""
