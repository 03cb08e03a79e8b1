"""Where weights come from, where they will lie, and how they are streamed there."""
