"""The shapes that go in and out, by what they are about."""
