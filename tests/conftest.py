pytest_plugins = ["tests.services.kafka"]
