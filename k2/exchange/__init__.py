"""An exchange to talk to: recorded or simulated."""
