"""What everything may use: errors, files, randomness, configuration sections, composition."""
