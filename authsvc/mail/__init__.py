"""Mail: templates, transports, and the thread that sends."""
