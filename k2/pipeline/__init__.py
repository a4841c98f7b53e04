"""The steps between log and lake, pure of Faust."""
