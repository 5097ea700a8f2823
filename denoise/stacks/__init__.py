"""Stacks: files of many planes, and of signed or floating-point values, as microscopes write them."""
