"""Looks at a deployment from outside: is what K2 needs there, and as K2 needs it?"""
