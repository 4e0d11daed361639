"""What several tests share: toys, fake records, small suites, fixtures."""
