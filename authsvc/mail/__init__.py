"""Mail: what it says, how it leaves, and the thread that sends it."""
