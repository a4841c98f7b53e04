"""The steps with their inputs and outputs: what joins a pure core to log, lake and clock."""
