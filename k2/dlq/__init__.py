"""Dead letters for people: looked at, and put into the log again once their cause is mended."""
